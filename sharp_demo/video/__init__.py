"""A file someone uploaded -> frames with timestamps. Untrusted bytes are decoded only in a child process.

This package must stay light: the child imports it before it can do anything.
"""

from sharp_demo.video.clip import ERROR_KINDS, Clip, VideoInfo
from sharp_demo.video.reader import Reader, decode, probe

__all__ = ["ERROR_KINDS", "Clip", "Reader", "VideoInfo", "decode", "probe"]
