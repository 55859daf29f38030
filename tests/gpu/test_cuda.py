"""What needs CUDA: the device and dtype chosen, the same pruning as on the CPU, and the varlen segment mask.

Imports no video decoder and no web framework, so that it runs where torch and transformers are all there is.
"""

import warnings

import pytest
import torch

from sharp_demo.backbones.load import Backbone, load
from sharp_demo.engine.generation import prefill
from sharp_demo.pruning.attention import Span, pack_segments, packed_segment_attention, segment_attention, varlen_kernel
from sharp_demo.pruning.registry import list_methods, make_method
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.settings import Settings
from tests.pruning.prompts import Prompt

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.fixture(params=["tiny_llava_folder", "tiny_qwen_folder"])
def pair(request: pytest.FixtureRequest) -> tuple[Backbone, Backbone]:
    """The same checkpoint on the CPU and on the GPU, both in float32."""
    folder = str(request.getfixturevalue(request.param))
    on = {device: Settings(device=device, dtype="float32", attention="sdpa") for device in ("cpu", DEVICE)}
    return load(folder, on["cpu"]), load(folder, on[DEVICE])


@torch.inference_mode()
def pruned(name: str, backbone: Backbone) -> tuple[set[int], list[int], torch.Tensor, dict[str, float]]:
    prompt = Prompt(backbone)
    with make_method(name, 0.3)(backbone.model, backbone.processor) as run:
        logits, _, _ = prefill(backbone.model, prompt.inputs())
    return set(run.kept.tolist()), run.visual_per_layer, logits.float().cpu(), run.stages


@pytest.mark.parametrize("name", list_methods())
def test_the_gpu_keeps_what_the_cpu_keeps(name: str, pair: tuple[Backbone, Backbone]) -> None:
    kept, counts, logits, _ = pruned(name, pair[0])
    gpu_kept, gpu_counts, gpu_logits, stages = pruned(name, pair[1])
    assert gpu_counts == counts
    assert len(gpu_kept & kept) >= 0.9 * len(kept)  # near-equal scores may change places between devices
    if gpu_kept == kept:
        torch.testing.assert_close(gpu_logits, logits, atol=5e-3, rtol=1e-2)
    assert all(ms >= 0 for ms in stages.values())


def test_automatic_choice_is_the_gpu_in_half_precision(tiny_llava_folder) -> None:
    info = load(str(tiny_llava_folder), Settings()).info
    assert info.device == DEVICE
    assert info.dtype in ("bfloat16", "float16")
    assert info.attention_reason


@pytest.mark.parametrize("backend", ["flash_attention_2", "sdpa"])
@pytest.mark.parametrize("prefix_visible", [True, False])
def test_varlen_segment_attention_equals_sdpa(prefix_visible: bool, backend: str) -> None:
    """One variable-length call against one SDPA per segment, in bf16 on the shapes of the 7B model."""
    span = Span(14, ((14, 798), (798, 1582), (1582, 1974)), prefix_visible)
    q, k, v = (torch.randn(1, heads, 2000, 128, device=DEVICE, dtype=torch.bfloat16) for heads in (28, 4, 4))
    expected = segment_attention(q.float(), k.float(), v.float(), span, 128**-0.5)
    kernel = varlen_kernel(q.device, q.dtype, backend)
    if kernel is None:
        pytest.skip(f"this machine has no varlen kernel that goes with {backend}")
    got = packed_segment_attention(q, k, v, pack_segments(span, 2000, q.device), 128**-0.5, kernel)
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=2e-2)


@torch.inference_mode()
def waits(name: str, backbone: Backbone, prompt: Prompt, cache: BiasCache) -> int:
    """How often CUDA says that the host waited for it during a prefill, bias warm."""
    inputs = prompt.inputs()
    with make_method(name, 0.3)(backbone.model, backbone.processor, cache):
        prefill(backbone.model, inputs)
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                prefill(backbone.model, inputs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def test_sharp_waits_for_the_gpu_at_most_twice(pair: tuple[Backbone, Backbone]) -> None:
    """Segment boundaries and counts; what the model itself waits for is vanilla's."""
    backbone = pair[1]
    prompt, cache = Prompt(backbone), BiasCache()
    assert waits("sharp", backbone, prompt, cache) - waits("vanilla", backbone, prompt, cache) <= 2
