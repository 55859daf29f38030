"""From a plan to pictures: MuJoCo moves the things and renders them; needs `requirements-world.txt`.

Physics and pictures are two models. The physics of a scene is compiled for it alone; the picture model holds every
surface, backdrop and shape, so that one context of the renderer serves all scenes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lab.tabletop import textures
from lab.tabletop.plan import COLORS, CROWD, FPS, SHAPES, SIZE, SURFACES, Plan, Thing
from lab.tabletop.truth import Truth, patch_labels, read_masks
from sharp_demo.errors import InputError

FILM_SIDE = 480
MODEL_SIDE = 160
QUICK_SIDE = 320  # of pictures for training: halved, they look as the film does when it is resized
STEP = 0.004  # seconds
SLOTS = CROWD
FLAT = 0.04  # half the height of a ring or a star
SHINE = {"marble": 0.16, "tiles": 0.1, "slate": 0.07, "wood": 0.05}  # how much a surface mirrors
TABLE = (2.4, 1.05, 0.04)  # half its extent
WALLS = 4
Pose = tuple[np.ndarray, np.ndarray, bool]  # place, rotation matrix, whether it was let go
Touches = tuple[tuple[float, int, int], ...]
Mesh = tuple[np.ndarray, np.ndarray]  # points and faces


@dataclass(frozen=True, eq=False)
class Take:
    """A filmed scene: pictures uint8 [T, side, side, 3], its truth and patch labels uint8 [intervals, 20, 20]."""

    frames: np.ndarray
    truth: Truth
    patches: np.ndarray


class Studio:
    """The renderer: MuJoCo's own, on Mesa in software through `backend` (egl or osmesa)."""

    def __init__(self, backend: str = "egl") -> None:
        self.backend = backend
        os.environ["MUJOCO_GL"] = backend  # read when mujoco is imported
        try:
            import mujoco
        except ImportError:
            raise InputError("rendering needs MuJoCo: pip install -r requirements-world.txt") from None

        self.mj = mujoco
        self.model = mujoco.MjModel.from_xml_string(_picture_xml())
        for name, number in self._textures().items():
            start, size = self.model.tex_adr[number], textures.SIDE**2 * 3
            self.model.tex_data[start : start + size] = textures.texture(name).ravel()
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self._renderers: dict[int, Any] = {}

    @cached_property
    def renderer(self) -> str:
        """What renders; the same seed gives the same pixels on the same renderer."""
        from OpenGL import GL

        self._renderer(MODEL_SIDE)  # makes a context
        return f"mujoco {self.mj.__version__}, {self.backend}, {GL.glGetString(GL.GL_RENDERER).decode()}"

    def shoot(self, plan: Plan, side: int = MODEL_SIDE, per_interval: int = 1, film: bool = False) -> Take:
        """Film a scene: pictures of `side` pixels at `per_interval` sampling instants, or at every film frame.

        The truth is that of the middle of each interval.
        """
        ticks = plan.ticks
        middles = [i * ticks + ticks // 2 for i in range(plan.length)]
        spots = [int((j + 0.5) * ticks / per_interval) for j in range(per_interval)]
        wanted = [i * ticks + spot for i in range(plan.length) for spot in spots]
        if film:
            wanted = list(range(plan.length * ticks))
        poses, touches = self._simulate(plan, sorted({*wanted, *middles}))
        self._dress(plan)
        frames, masks, patches, heights = [], [], [], []
        for tick in sorted({*wanted, *middles}):
            self._place(plan, tick, poses[tick])
            if tick in wanted:
                frames.append(self._picture(side))
            if tick in middles:
                mask, table = self._segments()
                masks.append(mask)
                patches.append(patch_labels(mask, table, len(plan.things)))
                heights.append([pose[2] if shown else -1.0 for pose, _, shown in poses[tick]])
        looks = [(thing.color, thing.shape, thing.act) for thing in plan.things]
        tracks = tuple(read_masks(masks, looks, np.array(heights)))
        truth = Truth(plan.length, plan.seconds, plan.surface, plan.camera.move, tracks, touches)
        return Take(np.stack(frames), truth, np.stack(patches))

    # -- physics -----------------------------------------------------------------------------------------------------

    def _simulate(
        self, plan: Plan, ticks: list[int]
    ) -> tuple[dict[int, list[Any]], tuple[tuple[float, int, int], ...]]:
        """Poses (place, rotation matrix, whether let go) of the things at film frames, and who touched whom first."""
        mj = self.mj
        model = mj.MjModel.from_xml_string(_physics_xml(plan.things))
        data = mj.MjData(model)
        waiting = dict(enumerate(plan.things))
        for number, thing in enumerate(plan.things):
            if thing.at <= 0:
                _let_go(data, number, thing)
                del waiting[number]
        mj.mj_forward(model, data)
        met: dict[tuple[int, int], float] = {}
        poses: dict[int, list[Pose]] = {}
        for tick in ticks:
            while data.time < tick / FPS - 1e-9:
                for number, thing in list(waiting.items()):
                    if thing.at <= data.time:
                        _let_go(data, number, thing)
                        del waiting[number]
                mj.mj_step(model, data)
                if data.ncon:
                    for a, b in data.contact.geom[: data.ncon]:
                        if a > 0 and b > 0 and a - 1 not in waiting and b - 1 not in waiting:
                            met.setdefault((int(min(a, b)) - 1, int(max(a, b)) - 1), float(data.time))
            poses[tick] = [
                (data.geom_xpos[n + 1].copy(), data.geom_xmat[n + 1].copy(), n not in waiting)
                for n in range(len(plan.things))
            ]
        return poses, tuple(sorted((round(at, 3), *pair) for pair, at in met.items()))

    # -- pictures ----------------------------------------------------------------------------------------------------

    def _textures(self) -> dict[str, int]:
        names = [*SURFACES, *(f"wall {i}" for i in range(WALLS))]
        return {name: self._id("TEXTURE", name) for name in names}

    def _id(self, kind: str, name: str) -> int:
        return int(self.mj.mj_name2id(self.model, getattr(self.mj.mjtObj, f"mjOBJ_{kind}"), name))

    def _dress(self, plan: Plan) -> None:
        """Put the surface, the backdrop, the light and the colours of a scene in place."""
        model = self.model
        model.geom_matid[self._id("GEOM", "table")] = self._id("MATERIAL", plan.surface)
        for name, shift in (("back", 0), ("floor", 2)):
            wall = f"wall {(plan.backdrop + shift) % WALLS}"
            model.geom_matid[self._id("GEOM", name)] = self._id("MATERIAL", wall)
        light = plan.light
        model.light_pos[0] = light.place
        aim = np.array([0.0, 0.1, 0.0]) - np.array(light.place)
        model.light_dir[0] = aim / np.linalg.norm(aim)
        model.light_diffuse[0] = light.color
        model.vis.headlight.ambient[:] = light.ambient
        model.vis.headlight.diffuse[:] = 0.16
        model.vis.headlight.specular[:] = 0.05
        self.mj.mj_forward(model, self.data)
        for slot in range(SLOTS):
            for shape in SHAPES:
                model.geom_rgba[self._id("GEOM", f"{shape} {slot}"), 3] = 0.0

    def _place(self, plan: Plan, tick: int, poses: list[Pose]) -> None:
        for slot, (thing, (place, turned, shown)) in enumerate(zip(plan.things, poses, strict=True)):
            geom = self._id("GEOM", f"{thing.shape} {slot}")
            self.data.geom_xpos[geom] = place
            self.data.geom_xmat[geom] = turned
            self.model.geom_rgba[geom] = (*COLORS[thing.color], 1.0 if shown else 0.0)
        camera, along = plan.camera, tick / (plan.length * plan.ticks) - 0.5
        view = self.mj.MjvCamera()
        view.type = self.mj.mjtCamera.mjCAMERA_FREE
        second = tick / FPS
        shake = camera.shake * np.array([np.sin(2.1 * second + 1), np.sin(3.3 * second)])
        view.azimuth = camera.azimuth + shake[0] + (camera.travel * along if camera.move == "orbit" else 0)
        view.elevation = camera.elevation + shake[1]
        view.distance = camera.distance - (camera.travel * along if camera.move == "zoom" else 0)
        across = camera.travel * along if camera.move == "pan" else 0.0
        view.lookat[:] = (camera.look[0] + across, camera.look[1], 0.05)
        self.view = view

    def _renderer(self, side: int) -> Any:
        if side not in self._renderers:
            self.model.vis.quality.offsamples = 4 if side > QUICK_SIDE else 0
            self._renderers[side] = self.mj.Renderer(self.model, side, side)
        return self._renderers[side]

    def _picture(self, side: int) -> np.ndarray:
        """The picture at `side` pixels; small ones are rendered at twice the side and averaged."""
        renderer = self._renderer(QUICK_SIDE if side == MODEL_SIDE else side)
        renderer.update_scene(self.data, camera=self.view)
        picture = renderer.render()
        if side == MODEL_SIDE:
            wide = picture.astype(np.uint16)
            wide = wide[::2] + wide[1::2]
            picture = ((wide[:, ::2] + wide[:, 1::2] + 2) >> 2).astype(np.uint8)
        return picture.copy()

    def _segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Masks at model resolution: the slot of the thing seen or -1, and where the surface is seen."""
        renderer = self._renderer(MODEL_SIDE)
        renderer.enable_segmentation_rendering()
        renderer.update_scene(self.data, camera=self.view)
        ids = renderer.render()[..., 0]
        first = self._id("GEOM", f"{SHAPES[0]} 0")
        slots = np.where(ids >= first, (ids - first) // len(SHAPES), -1)
        return slots, ids == self._id("GEOM", "table")


def _let_go(data: Any, number: int, thing: Thing) -> None:
    place, speed = number * 7, number * 6
    data.qpos[place : place + 3] = thing.start
    data.qpos[place + 3 : place + 7] = (np.cos(thing.turn / 2), 0, 0, np.sin(thing.turn / 2))
    data.qvel[speed : speed + 6] = (*thing.push, 0, 0, 0, 0)
    if thing.shape == "ball" and thing.act != "drop":  # it rolls
        data.qvel[speed + 3 : speed + 6] = _turned((-thing.push[1] / SIZE, thing.push[0] / SIZE, 0), -thing.turn)


def _turned(vector: tuple[float, float, float], angle: float) -> tuple[float, float, float]:
    x, y, z = vector
    return (x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), z)


def _ring(major: float = 0.105, minor: float = 0.04, around: int = 28, across: int = 12) -> Mesh:
    u, v = np.meshgrid(np.arange(around) / around, np.arange(across) / across, indexing="ij")
    u, v = 2 * np.pi * u, 2 * np.pi * v
    out = major + minor * np.cos(v)
    points = np.stack((out * np.cos(u), out * np.sin(u), minor * np.sin(v)), -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(around), np.arange(across), indexing="ij")
    a, b = i * across + j, (i + 1) % around * across + j
    c, d = (i + 1) % around * across + (j + 1) % across, i * across + (j + 1) % across
    return points, np.concatenate((np.stack((a, b, c), -1).reshape(-1, 3), np.stack((a, c, d), -1).reshape(-1, 3)))


def _star(outer: float = 0.165, inner: float = 0.072, half: float = FLAT) -> Mesh:
    angle = np.pi * np.arange(10) / 5
    radius = np.where(np.arange(10) % 2 == 0, outer, inner)
    flat = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1)
    top, bottom = np.c_[flat, np.full(10, half)], np.c_[flat, np.full(10, -half)]
    points = np.concatenate((top, bottom, [[0, 0, half * 1.3]], [[0, 0, -half]]))
    faces = []
    for i in range(10):
        k = (i + 1) % 10
        faces += [(20, i, k), (21, 10 + k, 10 + i), (i, 10 + i, 10 + k), (i, 10 + k, k)]
    return points, np.array(faces)


def _cone(radius: float = 0.115, height: float = 0.25, around: int = 28) -> Mesh:
    angle = 2 * np.pi * np.arange(around) / around
    rim = np.c_[radius * np.cos(angle), radius * np.sin(angle), np.full(around, -height / 4)]
    points = np.concatenate((rim, [[0, 0, height * 3 / 4]], [[0, 0, -height / 4]]))
    faces = []
    for i in range(around):
        k = (i + 1) % around
        faces += [(around, i, k), (around + 1, k, i)]
    return points, np.array(faces)


MESHES: dict[str, Callable[[], Mesh]] = {"cone": _cone, "ring": _ring, "star": _star}


def _meshes() -> str:
    lines = []
    for name, build in MESHES.items():
        points, faces = build()
        vertex = " ".join(f"{value:.5f}" for value in points.ravel())
        face = " ".join(map(str, faces.ravel()))
        lines.append(f'<mesh name="{name}" vertex="{vertex}" face="{face}" smoothnormal="false"/>')
    return "".join(lines)


def _geom(shape: str, name: str, more: str) -> str:
    kinds = {
        "ball": f'type="sphere" size="{SIZE}"',
        "cube": f'type="box" size="{SIZE * 0.9} {SIZE * 0.9} {SIZE * 0.9}"',
        "cylinder": f'type="cylinder" size="{SIZE * 0.85} {SIZE * 1.1}"',
    }
    return f'<geom name="{name}" {kinds.get(shape, f"""type="mesh" mesh="{shape}" """)} {more}/>'


def _picture_xml() -> str:
    surfaces = "".join(
        f'<texture name="{name}" type="2d" builtin="flat" width="{textures.SIDE}" height="{textures.SIDE}"/>'
        f'<material name="{name}" texture="{name}" texuniform="true" texrepeat="{repeat} {repeat}" '
        f'reflectance="{SHINE.get(name, 0)}" specular="{0.3 if name in SHINE else 0.05}" shininess="0.4"/>'
        for name, repeat in [*((s, 0.75) for s in SURFACES), *((f"wall {i}", 0.4) for i in range(WALLS))]
    )
    things = "".join(
        _geom(shape, f"{shape} {slot}", 'material="paint" rgba="1 0 0 0" pos="0 0 -20"')
        for slot in range(SLOTS)
        for shape in SHAPES
    )
    x, y, z = TABLE
    return f"""<mujoco><visual><quality shadowsize="1024" offsamples="4"/><map znear="0.02" shadowclip="3"/>
<global offwidth="{FILM_SIDE}" offheight="{FILM_SIDE}" fovy="45"/></visual>
<asset>{surfaces}{_meshes()}<material name="paint" specular="0.45" shininess="0.5"/></asset>
<worldbody><light castshadow="true" pos="0 0 3" specular="0.3 0.3 0.3" attenuation="1 0 0" cutoff="80" exponent="1"/>
<geom name="floor" type="plane" size="9 9 1" pos="0 0 -0.8" material="wall 0"/>
<geom name="back" type="box" size="9 0.1 4" pos="0 3.4 2" material="wall 1"/>
<geom name="table" type="box" size="{x} {y} {z}" pos="0 0 {-z}" material="wood"/>
{things}</worldbody></mujoco>"""


def _physics_xml(things: tuple[Thing, ...]) -> str:
    x, y, z = TABLE
    bodies = []
    for number, thing in enumerate(things):
        grip = 0.3 if thing.act == "slide" else 0.6
        roll = "0.002" if thing.shape == "ball" else "0.01"
        friction = f'condim="6" friction="{grip} 0.01 {roll}" density="500"'
        bodies.append(
            f'<body pos="{20 + number} 0 0"><freejoint/>{_geom(thing.shape, f"thing {number}", friction)}</body>'
        )
    return f"""<mujoco><option timestep="{STEP}" cone="elliptic"/><asset>{_meshes()}</asset><worldbody>
<geom name="table" type="box" size="{x} {y} {z}" pos="0 0 {-z}" friction="0.1 0.001 0.0001"/>
{"".join(bodies)}</worldbody></mujoco>"""
