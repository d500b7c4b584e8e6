"""The artwork atlas."""

import io
import json
import os
import struct

import numpy as np
from PIL import Image

from .generator import Atlas as Atlas


def unpack_atlas(pack_path, folder):
    raw = open(pack_path, 'rb').read(); n = struct.unpack('<I', raw[8:12])[0]; h = json.loads(raw[12:12 + n]); base = 12 + n; os.makedirs(folder, exist_ok=True); o = 0; idx = {}
    with open(os.path.join(folder, 'atlas.bin'), 'wb') as f:
        for st, t in h['styles'].items():
            idx[st] = {}
            for e, (a, L, fl, fr) in t.items():
                im = np.asarray(Image.open(io.BytesIO(raw[base + a:base + a + L])).convert('RGBA')); hh, w = im.shape[:2]
                idx[st][e] = [o, hh, w, int(round(fl * w)), int(round(fr * w))]; f.write(im.tobytes()); o += im.size
    json.dump(dict(size=h['size'], styles=idx), open(os.path.join(folder, 'index.json'), 'w'))
