#!/usr/bin/env python3
"""Unlimited procedural captioned pictures: painted backgrounds + emoji artwork.

    g = SceneGen('atlas', size=128)
    img, caption, meta = g.sample(12345)      # same index -> same picture, always

`plan(index)` decides what is in the picture (a plain dict), `render(spec)`
paints it, `captions(spec)` words it.  Only numpy and Pillow are needed at run
time; the atlas is made once by build_atlas.py.
"""
import json, math, os, re, zlib
import numpy as np
from PIL import Image, ImageDraw

F = np.float32
HERE = os.path.dirname(os.path.abspath(__file__))


def C(r, g, b): return np.array([r, g, b], F) / F(255)
def lerp(a, b, t): return a + (b - a) * t


def smooth(e0, e1, x):
    t = np.clip((x - e0) / (e1 - e0), 0, 1)
    return t * t * (3 - 2 * t)


# --------------------------------------------------------------------------- noise
_bank = {}


def bank(kind, R):
    k = (kind, R)
    if k not in _bank:
        n = 2 * R
        rg = np.random.default_rng(abs(hash(kind)) % 1000 if False else sum(map(ord, kind)))
        beta, ax, ay, lo = {'cloud': (1.75, 2.4, 1.0, 2.0), 'soft': (2.0, 1, 1, 1.5), 'fine': (.55, 1, 1, 6), 'mid': (1.2, 1, 1, 3),
                            'water': (1.0, 5.0, 1.0, 5), 'wood': (1.1, 14.0, 1.0, 3), 'grass': (.7, 1.0, 3.0, 5)}[kind]
        fy = np.fft.fftfreq(n)[:, None] * n * ay if ay != 1 else np.fft.fftfreq(n)[:, None] * n
        fx = np.fft.rfftfreq(n)[None] * n * ax if ax != 1 else np.fft.rfftfreq(n)[None] * n
        f = np.sqrt(fx * fx + fy * fy); f[0, 0] = 1
        s = (np.maximum(f, lo * 2)) ** (-beta)
        s[0, 0] = 0
        if kind in ('fine', 'grass', 'water'): s = s * np.exp(-(f / (n * .42)) ** 2)
        z = np.fft.irfft2(np.fft.rfft2(rg.standard_normal((n, n))) * s, s=(n, n))
        _bank[k] = (z / z.std()).astype(F)
    return _bank[k]


# --------------------------------------------------------------------------- light
TIMES = {
    #            sky stops (top .. horizon)                                                   ambient            sun/moon colour
    'day':      ([(0, C(58, 138, 224)), (.6, C(132, 194, 245)), (1, C(208, 234, 250))], (1, 1, 1), C(255, 250, 224)),
    'morning':  ([(0, C(112, 158, 220)), (.55, C(236, 196, 190)), (1, C(255, 228, 176))], (1.0, .92, .86), C(255, 240, 196)),
    'sunset':   ([(0, C(50, 46, 108)), (.45, C(186, 82, 112)), (.75, C(248, 138, 78)), (1, C(255, 208, 120))], (.92, .70, .62), C(255, 226, 150)),
    'night':    ([(0, C(5, 9, 30)), (.6, C(16, 28, 70)), (1, C(42, 60, 110))], (.33, .40, .60), C(240, 242, 230)),
    'cloudy':   ([(0, C(138, 150, 164)), (1, C(206, 211, 215))], (.84, .86, .88), C(235, 235, 230)),
    'rain':     ([(0, C(86, 96, 110)), (1, C(150, 158, 166))], (.66, .70, .76), C(200, 200, 200)),
    'snowfall': ([(0, C(158, 170, 186)), (1, C(220, 226, 233))], (.90, .93, .98), C(230, 230, 230)),
    'fog':      ([(0, C(188, 195, 201)), (1, C(222, 225, 226))], (.90, .92, .94), C(235, 235, 232)),
}
OBJ_AMB = {'day': (1, 1, 1), 'morning': (1.0, .95, .90), 'sunset': (.98, .80, .72), 'night': (.60, .65, .84), 'cloudy': (.92, .93, .94),
           'rain': (.80, .83, .87), 'snowfall': (.95, .97, 1.0), 'fog': (.95, .96, .97)}


class Canvas:
    _g = {}
    tex = 1.0            # strength of grass, sand, wood and water texture; less is easier for a small tokenizer

    def __init__(s, R, rng, atlas, style, time='day'):
        s.R, s.rng, s.atlas, s.style, s.time = R, rng, atlas, style, time
        if R not in s._g:
            v = ((np.arange(R) + .5) / R).astype(F)
            s._g[R] = (v[None, :], v[:, None])
        s.X, s.Y = s._g[R]
        s.img = np.zeros((R, R, 3), F)
        st, amb, sun = TIMES[time]
        j = rng.normal(0, .018, 3).astype(F)
        s.stops = [(p, np.clip(c + j, 0, 1)) for p, c in st]
        s.amb = np.array(amb, F); s.suncol = sun
        s.hz = s.stops[-1][1]          # horizon colour
        s.zone = dict(ground=(.66, .95), sky=(.06, .5), water=None)
        s.horizon = .5

    # ---- helpers
    def u(s, a, b): return float(s.rng.uniform(a, b))
    def pick(s, *a): return a[int(s.rng.integers(len(a)))]
    def col(s, c, j=.03): return np.clip(np.asarray(c, F) + s.rng.normal(0, j, 3).astype(F), 0, 1)
    def lit(s, c): return np.clip(np.asarray(c, F) * s.amb, 0, 1)

    def noise(s, kind):
        b = bank(kind, s.R); y, x = s.rng.integers(s.R, size=2)
        z = b[y:y + s.R, x:x + s.R]
        if s.tex != 1 and kind not in ('cloud', 'soft'): z = z * F(s.tex)
        return z[:, ::-1] if s.rng.random() < .5 else z

    def over(s, m, c):
        """paint colour c (3,) or (R,R,3) with mask m (R,R)"""
        m = m[..., None]
        s.img += (c - s.img) * m

    def win(s, x0, y0, x1, y1):
        R = s.R
        a, b = max(0, int(math.floor(x0 * R))), min(R, int(math.ceil(x1 * R)))
        c, d = max(0, int(math.floor(y0 * R))), min(R, int(math.ceil(y1 * R)))
        return (slice(c, d), slice(a, b)) if b > a and d > c else None

    def blend(s, w, m, c):
        v = s.img[w]; v += (c - v) * m[..., None]

    def ellipse(s, cx, cy, rx, ry, c, a=1.0, soft=None):
        soft = soft or 1.0 / s.R
        w = s.win(cx - rx - soft, cy - ry - soft, cx + rx + soft, cy + ry + soft)
        if not w: return
        dx = (s.X[:, w[1]] - cx) / rx; dy = (s.Y[w[0]] - cy) / ry
        d = (np.sqrt(dx * dx + dy * dy) - 1) * min(rx, ry)
        s.blend(w, np.clip(.5 - d / soft, 0, 1) * a, c)

    def glow(s, cx, cy, r, c, a):
        d2 = ((s.X - cx) ** 2 + (s.Y - cy) ** 2) / (r * r)
        s.img += (np.exp(-d2) * a)[..., None] * (np.asarray(c, F) - s.img * .5)

    def rect(s, x0, y0, x1, y1, c, a=1.0, r=0.0):
        e = 1.0 / s.R
        w = s.win(x0 - e, y0 - e, x1 + e, y1 + e)
        if not w: return
        cx, cy, hw, hh = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 - r, (y1 - y0) / 2 - r
        dx = np.abs(s.X[:, w[1]] - cx) - hw; dy = np.abs(s.Y[w[0]] - cy) - hh
        if r > 0: d = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2) + np.minimum(np.maximum(dx, dy), 0) - r
        else: d = np.maximum(dx, dy)
        s.blend(w, np.clip(.5 - d * s.R, 0, 1) * a, c)

    def poly(s, pts, c, a=1.0, ss=3):
        R = s.R; p = np.asarray(pts, float) * R
        x0, y0 = np.floor(p.min(0)).astype(int) - 1; x1, y1 = np.ceil(p.max(0)).astype(int) + 1
        x0, y0 = max(x0, 0), max(y0, 0); x1, y1 = min(x1, R), min(y1, R)
        if x1 <= x0 or y1 <= y0: return
        m = Image.new('L', ((x1 - x0) * ss, (y1 - y0) * ss))
        ImageDraw.Draw(m).polygon([((x - x0) * ss, (y - y0) * ss) for x, y in p], fill=255)
        m = np.asarray(m.reduce(ss), F) / 255
        s.blend((slice(y0, y1), slice(x0, x1)), m * a, c)

    def sprite(s, emoji, cx, base, h, amb=None, haze=0.0, alpha=1.0, flip=None, hazecol=None):
        """scenery prop from the atlas; base = y of its foot, h = height (fractions)"""
        t = s.atlas.get(s.style, emoji) or s.atlas.get('noto', emoji)
        if t is None: return
        im, fl, fr = t
        H = max(2, int(round(h * s.R))); W = max(1, int(round(H * im.width / im.height)))
        im = s.atlas.scaled(s.style, emoji, W, H, im)
        a = np.asarray(im, F) / 255
        if flip if flip is not None else s.rng.random() < .5: a = a[:, ::-1]
        x0 = int(round(cx * s.R - W / 2)); y0 = int(round(base * s.R - H))
        X0, Y0, X1, Y1 = max(x0, 0), max(y0, 0), min(x0 + W, s.R), min(y0 + H, s.R)
        if X1 <= X0 or Y1 <= Y0: return
        a = a[Y0 - y0:Y1 - y0, X0 - x0:X1 - x0]
        rgb = a[..., :3] * (s.amb if amb is None else np.asarray(amb, F))
        if haze: rgb = lerp(rgb, s.hz if hazecol is None else hazecol, haze)
        s.blend((slice(Y0, Y1), slice(X0, X1)), a[..., 3] * alpha, np.minimum(rgb, 1))

    # ---- sky
    def sky(s, horizon, clouds=None, sun=None):
        s.horizon = horizon
        p = np.clip(s.Y[:, 0] / horizon, 0, 1)
        xs = [q for q, _ in s.stops]
        g = np.stack([np.interp(p, xs, [c[k] for _, c in s.stops]) for k in range(3)], -1).astype(F)
        s.img[:] = g[:, None]
        t = s.time
        s.sunpos = None
        if getattr(s, 'nosun', False): sun = False
        if t in ('day', 'morning', 'sunset') and (sun if sun is not None else s.rng.random() < {'day': .45, 'morning': .7, 'sunset': .85}[t]):
            cx = s.u(.1, .9); cy = s.u(.08, .22) if t == 'day' else horizon - s.u(.02, .14); r = s.u(.04, .075) if t != 'day' else s.u(.035, .06)
            s.glow(cx, cy, r * 5, s.suncol, .38 if t == 'day' else .55); s.glow(cx, cy, r * 2, s.suncol, .5)
            s.ellipse(cx, cy, r, r, np.clip(s.suncol * 1.05, 0, 1), 1, 2.0 / s.R); s.sunpos = (cx, cy)
        if t == 'night':
            s.stars(horizon)
            if s.rng.random() < .7 and sun is not False:
                cx, cy, r = s.u(.1, .9), s.u(.08, .24), s.u(.045, .08)
                s.glow(cx, cy, r * 3.2, C(150, 170, 215), .45)
                if s.rng.random() < .5: s.ellipse(cx, cy, r, r, s.suncol)
                else:
                    w = s.win(cx - r * 1.2, cy - r * 1.2, cx + r * 1.2, cy + r * 1.2)
                    d1 = np.hypot(s.X[:, w[1]] - cx, s.Y[w[0]] - cy) - r; d2 = np.hypot(s.X[:, w[1]] - cx - r * .5, s.Y[w[0]] - cy + r * .15) - r * .92
                    s.blend(w, np.clip(.5 - d1 * s.R, 0, 1) * np.clip(.5 + d2 * s.R, 0, 1), s.suncol)
                s.sunpos = (cx, cy)
        k = {'day': .55, 'morning': .6, 'sunset': .65, 'night': .3, 'cloudy': 1, 'rain': 1, 'snowfall': .8, 'fog': .2}[t] if clouds is None else clouds
        if s.rng.random() < k: s.clouds(horizon)

    def stars(s, ymax, n=None, dens=1.0):
        R = s.R; n = n or int(dens * s.u(60, 140)); r = s.rng
        xs = r.random(n); ys = r.random(n) ** 1.2 * ymax; b = r.random(n) ** 2 * .8 + .2
        xi = np.minimum((xs * R).astype(int), R - 1); yi = np.minimum((ys * R).astype(int), R - 1)
        np.maximum.at(s.img, (yi, xi), (b[:, None] * np.array([1, .98, .92])).astype(F))
        for k in np.argsort(-b)[:n // 14]:
            s.ellipse(xs[k], ys[k], 1.1 / R, 1.1 / R, C(255, 252, 235), .9); s.ellipse(xs[k], ys[k], 3 / R, 3 / R, C(180, 200, 255), .25, 3 / R)

    def clouds(s, horizon):
        t = s.time
        top = {'day': C(255, 255, 255), 'morning': C(255, 236, 222), 'sunset': C(255, 190, 150), 'night': C(60, 72, 112), 'cloudy': C(226, 229, 232), 'rain': C(140, 148, 158), 'snowfall': C(228, 232, 238), 'fog': C(235, 236, 237)}[t]
        low = {'day': C(190, 206, 226), 'morning': C(222, 176, 180), 'sunset': C(150, 78, 110), 'night': C(24, 32, 64), 'cloudy': C(158, 166, 176), 'rain': C(74, 82, 96), 'snowfall': C(186, 194, 206), 'fog': C(205, 208, 211)}[t]
        if t in ('day', 'morning', 'sunset') and s.rng.random() < .5:      # puffy clouds
            for _ in range(int(s.rng.integers(2, 5))):
                cx, cy, w = s.u(-.05, 1.05), s.u(.04, max(.08, horizon * .72)), s.u(.07, .17)
                n = int(s.rng.integers(4, 8)); xs = np.linspace(-1, 1, n) + s.rng.normal(0, .08, n)
                rs = w * (.28 + .30 * (1 - np.abs(xs)) + s.rng.random(n) * .10)
                for c, dy, k in ((low, .012, 1.0), (top, -.008, .94)):
                    for x, r in zip(xs, rs):
                        s.ellipse(cx + x * w, cy - r * .35 + dy, r * k, r * .78 * k, c, .85, .014)
            return
        z = s.noise('cloud'); cov = {'cloudy': -.5, 'rain': -.9, 'snowfall': -.4, 'night': .5}.get(t, s.u(.2, .8))
        m = smooth(cov, cov + 1.1, z) * np.clip(1.15 - s.Y / horizon, 0, 1) ** .5 * .92
        k = max(1, s.R // 32); sh = np.clip((z - np.roll(z, -k, 0)) * .9 + .5, 0, 1)[..., None]
        s.over(m, lerp(low, top, sh))

    # ---- land forms
    def curve(s, base, amp, freq=1.5, rough=.0):
        x = s.X[0]; y = np.full(s.R, base, F)
        for k in range(3):
            y += F(amp / (k + 1)) * np.sin(2 * np.pi * (freq * (1.7 ** k) * x + s.rng.random())).astype(F) * F(.6)
        if rough: y += rough * s.noise('fine')[0] * .4
        return y

    def below(s, curve): return np.clip((s.Y - curve[None, :]) * s.R + .5, 0, 1)

    def hill(s, base, amp, c, freq=1.3, tex='grass', k=.06, haze=0, dark=.75, depth=.4, rough=0.):
        cv = s.curve(base, amp, freq, rough); m = s.below(cv)
        c = s.lit(c); c = lerp(c, s.hz, haze)
        d = np.clip((s.Y - cv[None]) / depth, 0, 1)[..., None]
        colr = lerp(c * 1.08, c * dark, d)
        if tex: colr = colr * (1 + k * (1 - haze) * s.noise(tex)[..., None])
        s.over(m, np.clip(colr, 0, 1)); return cv

    def ridge(s, n=9, rough=.55):
        y = np.array([0., 0.]); a = 1.0
        for _ in range(n):
            mid = (y[:-1] + y[1:]) / 2 + s.rng.normal(0, a, len(y) - 1) * .5
            z = np.empty(len(y) + len(mid)); z[0::2] = y; z[1::2] = mid; y = z; a *= rough
        y = np.interp(np.linspace(0, 1, s.R), np.linspace(0, 1, len(y)), y)
        return ((y - y.min()) / (np.ptp(y) + 1e-6)).astype(F)

    def mountains(s, base, height, c, snow=True, haze=.2):
        cv = base - height * (.25 + .75 * s.ridge())
        m = s.below(cv); d = s.Y - cv[None]
        n = bank('mid', s.R); o = int(s.rng.integers(s.R))
        xi = np.clip(((s.X + d * .55 * s.pick(-1, 1)) * s.R).astype(int), -s.R, 2 * s.R - 1) + o
        f = n[(o * 7) % (2 * s.R)][xi % (2 * s.R)] + .35 * s.noise('mid')
        sh = np.clip(.5 + f * .45, 0, 1)[..., None]
        rock = s.lit(c); colr = lerp(rock * .62, rock * 1.12, sh)
        if snow:
            line = height * s.u(.22, .42)
            sm = smooth(line * 1.1, line * .7, d + .018 * f * (height / .3))
            colr = lerp(colr, lerp(s.lit(C(170, 190, 220)), s.lit(C(252, 253, 255)), smooth(.35, .6, sh)), sm[..., None])
        colr = lerp(colr, s.hz, haze + .25 * np.clip(d / height, 0, 1)[..., None])
        s.over(m, np.clip(colr, 0, 1))

    def pines(s, base, h, c, n=26, haze=0.):
        """far row of conifers as a saw-tooth curve"""
        x = s.X[0]; y = np.full(s.R, base, F)
        for _ in range(n):
            cx, hh = s.rng.random() * 1.1 - .05, h * s.u(.55, 1.1); w = hh * s.u(.22, .32)
            t = np.clip(1 - np.abs(x - cx) / w, 0, 1); step = (t * 4 % 1) * .12
            y = np.minimum(y, base - hh * np.clip(t - step, 0, 1))
        c = lerp(s.lit(c), s.hz, haze)
        s.over(s.below(y), c * (1 + .05 * s.noise('fine')[..., None]))

    def depthmap(s, h, near=1.0, tilt=1.0):
        """ground plane below y=h: returns z (1 = bottom edge, grows with distance) and lateral u"""
        d = np.maximum(s.Y - h, .5 / s.R) / (1 - h)
        z = (1 / d).astype(F)
        return z, (s.X - .5) * z

    def gather(s, kind, u, v):
        b = bank(kind, s.R); n = b.shape[0]
        o1, o2 = s.rng.integers(n, size=2)
        return b[(v * s.R).astype(np.int32) % n if not isinstance(v, int) else v, (u * s.R).astype(np.int32) % n] if o1 < 0 else \
            b[((v * s.R).astype(np.int32) + o1) % n, ((u * s.R).astype(np.int32) + o2) % n]

    def water(s, h, near, far, bottom=None, k=.10, glint=True):
        """sea or lake surface from y=h down"""
        m = np.clip((s.Y - h) * s.R + .5, 0, 1) * np.ones_like(s.X)
        if bottom is not None: m = m * (1 - s.below(bottom))
        t = np.clip((s.Y - h) / (1 - h), 0, 1)[..., None] ** .7
        c = lerp(lerp(s.lit(far), s.hz, .35), s.lit(near), t)
        z, u = s.depthmap(h)
        zz = np.minimum(z, 7)
        w = s.gather('water', u * .5 + 3, np.minimum(z, 40) * .22 + 0 * s.X)
        w = w * np.clip(1.5 / zz, .25, 1)
        c = c * (1 + k * w[..., None])
        hi = smooth(1.2, 2.2, w)[..., None] * .35
        c = lerp(c, lerp(s.hz, C(255, 255, 255), .4), hi * (.5 if s.time in ('night', 'rain') else 1))
        if glint and s.sunpos:
            g = np.exp(-((s.X - s.sunpos[0]) / (.05 + .10 * t[..., 0])) ** 2) * smooth(.1, 1.4, w + .4) * (.75 if s.time != 'day' else .4)
            c = lerp(c, s.suncol, np.clip(g, 0, 1)[..., None])
        s.over(m, np.clip(c, 0, 1))

    def flowers(s, n, y0, y1, cols=None):
        cols = cols or [C(255, 240, 90), C(255, 255, 255), C(250, 120, 170), C(240, 70, 60), C(170, 110, 230)]
        ys = np.sort(s.rng.uniform(y0, y1, n))
        for y in ys:
            r = (.006 + .012 * (y - s.horizon)) * s.u(.7, 1.3); x = s.rng.random(); c = s.lit(cols[int(s.rng.integers(len(cols)))])
            for a in range(4): s.ellipse(x + r * math.cos(a * 1.57 + .4), y + r * math.sin(a * 1.57 + .4), r * .8, r * .8, c)
            s.ellipse(x, y, r * .6, r * .6, s.lit(C(250, 200, 60)))

    def tufts(s, n, y0, y1, c):
        ys = np.sort(s.rng.uniform(y0, y1, n))
        for y in ys:
            x = s.rng.random(); h = (.02 + .05 * (y - s.horizon)) * s.u(.7, 1.3); cc = s.lit(s.col(c, .04))
            for k in range(3):
                dx = (k - 1) * h * .45; s.poly([(x - h * .12 + dx * .3, y), (x + h * .12 + dx * .3, y), (x + dx, y - h * s.u(.7, 1))], cc)


# --------------------------------------------------------------------------- backgrounds
def _grassy(g, h, c=None, hills=True):
    g.sky(h)
    c = c if c is not None else g.col(g.pick(C(112, 178, 68), C(92, 165, 72), C(134, 186, 74)), .025)
    if hills:
        g.hill(h - .02, .04, lerp(c, C(70, 130, 110), .35), 1.1, haze=.45); g.hill(h + .01, .03, lerp(c, C(60, 130, 80), .2), 1.5, haze=.2)
    g.hill(h + .05, .02, c, .8, dark=.72, depth=.5, k=.07); return c


def bg_beach(g):
    h = g.u(.36, .46); g.sky(h)
    shore = g.curve(g.u(.57, .64), .03, .6)
    if g.rng.random() < .35: g.hill(h, .03, C(90, 140, 100), 1.2, haze=.45, depth=.1)
    g.water(h, g.pick(C(52, 176, 200), C(40, 150, 190), C(60, 190, 190)), C(22, 98, 168), shore + .02)
    sand = g.lit(g.col(g.pick(C(240, 214, 158), C(232, 204, 150), C(246, 226, 180)), .015))
    d = np.clip((g.Y - shore[None]) / .4, 0, 1)[..., None]
    c = lerp(sand * .93, sand, smooth(.0, .3, d)) * (1 + .035 * g.noise('fine')[..., None] + .03 * g.noise('mid')[..., None])
    g.over(g.below(shore + .012), np.clip(c, 0, 1))
    wob = shore + .012 * g.noise('fine')[0] * .5
    foam = np.exp(-((g.Y - wob[None] - .008) / .011) ** 2); g.over(foam * .85, g.lit(C(255, 255, 255)))
    if g.rng.random() < .35: g.sprite('🌴', g.pick(g.u(.02, .14), g.u(.86, .98)), g.u(.66, .8), g.u(.42, .6))
    g.zone.update(ground=(.70, .96), sky=(.06, h), water=(h + .08, .56))


def bg_ocean(g):
    h = g.u(.38, .5); g.sky(h)
    if g.rng.random() < .25: g.hill(h + .005, .035, C(80, 120, 110), 1.6, haze=.5, depth=.1)
    g.water(h, g.pick(C(18, 92, 150), C(20, 110, 160), C(30, 120, 150)), C(30, 110, 175), k=.16)
    g.zone.update(ground=None, sky=(.06, h - .05), water=(h + .16, .93))


def bg_underwater(g):
    a, b = g.pick((C(70, 195, 225), C(8, 50, 110)), (C(90, 215, 210), C(6, 70, 100)), (C(50, 150, 230), C(8, 30, 90)))
    if g.time == 'night': a, b = a * .35, b * .45
    g.img[:] = lerp(a, b, (g.Y ** .9)[..., None]); g.horizon = .3
    for _ in range(int(g.rng.integers(4, 8))):
        x = g.u(-.1, 1.1); w = g.u(.02, .07); k = g.u(-.35, .35)
        m = np.exp(-((g.X - x - k * g.Y) / (w * (1 + g.Y))) ** 2) * np.clip(1 - g.Y * 1.1, 0, 1) * g.u(.15, .3)
        g.img += m[..., None] * C(210, 245, 255)
    cv = g.curve(g.u(.82, .88), .025, 1.2); s = lerp(C(226, 206, 150), b, .45)
    if g.time == 'night': s = s * .5
    g.over(g.below(cv), s * (1 + .05 * g.noise('fine')[..., None]))
    for _ in range(int(g.rng.integers(3, 8))):
        x = g.u(0, 1); hh = g.u(.08, .26); c = lerp(g.pick(C(40, 140, 80), C(60, 160, 70), C(150, 60, 110), C(230, 110, 90)), b, .25); n = 14; w0 = g.u(.008, .018); ph = g.u(0, 6)
        L = [(x + .03 * math.sin(ph + 5 * t) * t - w0 * (1 - t), .9 - hh * t) for t in np.linspace(0, 1, n)]
        Rr = [(x + .03 * math.sin(ph + 5 * t) * t + w0 * (1 - t), .9 - hh * t) for t in np.linspace(1, 0, n)]
        g.poly(L + Rr, c)
    if g.rng.random() < .6: g.sprite('🪸', g.u(.05, .95), .93, g.u(.1, .18), amb=(.7, .85, .95))
    for _ in range(int(g.rng.integers(5, 20))):
        r = g.u(.005, .016); x, y = g.u(0, 1), g.u(.05, .85); g.ellipse(x, y, r, r, C(220, 245, 255), .45); g.ellipse(x - r * .3, y - r * .3, r * .35, r * .35, C(255, 255, 255), .8)
    np.clip(g.img, 0, 1, out=g.img)
    g.zone.update(ground=(.86, .97), sky=(.1, .8), water=(.35, .85), float_=(.15, .85))


def bg_snow(g):
    h = g.u(.42, .5); g.sky(h)
    if g.rng.random() < .55: g.mountains(h + .03, g.u(.15, .28), C(110, 122, 145), haze=.3)
    if g.rng.random() < .7: g.pines(h + .04, g.u(.07, .14), C(50, 88, 80), haze=.25)
    w = C(244, 248, 255)
    g.hill(h + .03, .03, w * .95, 1.1, tex='soft', k=.015, dark=.9); g.hill(h + .12, .03, w, .8, tex='soft', k=.02, dark=.88, depth=.5)
    for _ in range(int(g.rng.integers(0, 4))):
        y = h + g.u(.06, .16); x = g.pick(g.u(0, .2), g.u(.8, 1)); hh = g.u(.14, .3); g.sprite('🌲', x, y + .04, hh, haze=.1)
        g.ellipse(x, y + .042, hh * .3, .012, g.lit(w), .8, .015)
    if g.time in ('cloudy', 'night', 'day') and g.rng.random() < .35 or g.time == 'snowfall': g.fx = 'snow'
    g.zone.update(ground=(.72, .95), sky=(.06, h))


def bg_forest(g, autumn=False):
    h = g.u(.46, .54); g.sky(h, clouds=.2, sun=False)
    leaf = C(196, 112, 40) if autumn else C(60, 120, 60)
    g.hill(h - .12, .04, lerp(leaf, g.hz, .3), 2.2, tex='mid', k=.12, haze=.3, rough=.05)
    gc = g.col(C(170, 120, 60) if autumn else C(92, 142, 62), .02)
    g.hill(h, .015, gc, .9, tex='mid', k=.08, dark=.7)
    tr = ['🌳', '🌲'] if g.rng.random() < .6 else ['🌲']
    if autumn: tr = ['🌳']
    rows = [(h + .02, .34, 9, .42), (h + .06, .46, 7, .2), (h + .13, .62, 4, 0)]
    for y, hh, n, hz in rows:
        xs = np.linspace(-.02, 1.02, n) + g.rng.normal(0, .04, n)
        for x in xs:
            if hz == 0 and abs(x - .5) < .27: continue
            am = g.amb * (np.array([1.55, .82, .5], F) if autumn else 1) * g.u(.85, 1.02)
            g.sprite(tr[int(g.rng.integers(len(tr)))], x, y + g.u(0, .03), hh * g.u(.8, 1.15), amb=am, haze=hz)
    if autumn:
        for _ in range(40): g.ellipse(g.u(0, 1), g.u(h + .15, 1), g.u(.006, .014), g.u(.004, .008), g.lit(g.pick(C(220, 110, 30), C(200, 60, 30), C(240, 180, 60))))
    elif g.rng.random() < .5: g.tufts(24, h + .16, 1, C(70, 130, 50))
    g.zone.update(ground=(.74, .96), sky=(.06, .4))


def bg_autumn(g): bg_forest(g, True)


def bg_jungle(g):
    h = .5; g.sky(h, clouds=0, sun=False); g.img *= .85
    g.hill(.18, .06, C(40, 110, 60), 2.5, tex='mid', k=.15, haze=.35, rough=.08); g.hill(.5, .03, C(52, 112, 48), 1, tex='mid', k=.1, dark=.6)
    for _ in range(7): g.sprite(g.pick('🌴', '🌳', '🌴'), g.u(-.02, 1.02), h + g.u(0, .08), g.u(.35, .5), haze=.2)
    for x in (g.u(-.02, .1), g.u(.9, 1.02)): g.sprite('🌴', x, h + .2, g.u(.6, .75))
    for _ in range(16):                                    # big leaves
        x = g.pick(g.u(-.05, .25), g.u(.75, 1.05)); y = g.u(.62, 1.05); L = g.u(.12, .24); a = g.u(-2.6, -.5); c = g.lit(g.col(C(38, 125, 55), .05)); w = .22
        px, py = math.cos(a), math.sin(a)
        g.poly([(x, y), (x + L * (.5 * px - w * py), y + L * (.5 * py + w * px)), (x + L * px, y + L * py), (x + L * (.5 * px + w * py), y + L * (.5 * py - w * px))], c)
        g.poly([(x, y), (x + L * px, y + L * py), (x + L * (.5 * px + .02 * -py), y + L * (.5 * py + .02 * px))], c * .7)
    g.tufts(26, .66, 1, C(46, 120, 44)); g.zone.update(ground=(.76, .96), sky=(.06, .4))


def bg_desert(g):
    h = g.u(.42, .52); g.sky(h, clouds=.25)
    c = g.col(g.pick(C(236, 190, 118), C(226, 170, 100), C(240, 204, 140)), .02)
    if g.rng.random() < .3: g.mountains(h + .02, g.u(.08, .16), C(190, 120, 84), snow=False, haze=.3)
    for b, a, hz in ((h, .05, .35), (h + .07, .05, .15), (h + .17, .04, 0)):
        cv = g.hill(b, a, c, 1.0, tex='fine', k=.03, haze=hz, dark=.82)
        d = g.Y - cv[None]; sh = np.clip(np.gradient(cv) * g.R * 1.6, -1, 1)[None] * np.exp(-np.clip(d, 0, 1) / .09) * g.below(cv)
        g.img *= (1 - .22 * np.clip(sh, 0, 1) + .06 * np.clip(-sh, 0, 1))[..., None]
    w = g.noise('water'); g.img *= (1 + .02 * w * smooth(h + .15, 1, g.Y))[..., None]
    for _ in range(int(g.rng.integers(0, 3))): g.sprite('🌵', g.pick(g.u(.03, .25), g.u(.75, .97)), h + g.u(.06, .16), g.u(.1, .26), haze=.05)
    g.zone.update(ground=(.74, .95), sky=(.06, h))


def bg_savanna(g):
    h = g.u(.46, .54); g.sky(h, clouds=.3)
    g.hill(h - .02, .02, C(150, 140, 90), 1, haze=.45); g.hill(h + .01, .012, C(214, 178, 92), 1, tex='grass', k=.07, dark=.8)
    for _ in range(int(g.rng.integers(2, 5))):               # flat-topped acacias
        x = g.u(0, 1); y = h + g.u(.0, .06); s = .5 + 6 * (y - h); t = g.lit(C(80, 58, 40)); hh = .09 + s * .09
        g.poly([(x - .006 * s - .004, y), (x + .006 * s + .004, y), (x + .004, y - hh), (x - .004, y - hh)], t)
        for _ in range(5): g.ellipse(x + g.u(-.09, .09) * (s + .3), y - hh - g.u(-.01, .02), .06 * (s + .4), .018 * (s + .5), g.lit(g.col(C(96, 120, 50), .03)), 1, .012)
    g.tufts(44, h + .06, 1, C(196, 156, 70)); g.zone.update(ground=(.72, .95), sky=(.06, h))


def bg_meadow(g):
    h = g.u(.44, .54); _grassy(g, h)
    if g.rng.random() < .3: g.sprite(g.pick('🌳', '🌲'), g.pick(g.u(.03, .2), g.u(.8, .97)), h + g.u(.04, .1), g.u(.2, .34), haze=.1)
    if g.rng.random() < .7: g.flowers(int(g.rng.integers(12, 40)), h + .1, .99)
    if g.rng.random() < .6: g.tufts(26, h + .12, 1, C(78, 150, 54))
    g.zone.update(ground=(.72, .95), sky=(.06, h))


def bg_farm(g):
    h = g.u(.42, .5); c = _grassy(g, h)
    if g.rng.random() < .75:                                 # red barn
        x, y, s = g.pick(g.u(.1, .28), g.u(.72, .9)), h + .07, g.u(.09, .13); r = g.lit(C(176, 48, 40)); w = g.lit(C(245, 240, 232))
        g.rect(x - s, y - s * 1.1, x + s, y, r); g.poly([(x - s * 1.12, y - s * 1.08), (x - s * .6, y - s * 1.8), (x + s * .6, y - s * 1.8), (x + s * 1.12, y - s * 1.08)], g.lit(C(96, 70, 62)))
        g.rect(x - s * .36, y - s * .72, x + s * .36, y, w); g.rect(x - s * .3, y - s * .66, x + s * .3, y, r * .8); g.poly([(x - s * .3, y - s * .66), (x - s * .2, y - s * .66), (x + s * .3, y), (x + s * .2, y)], w)
    z, u = g.depthmap(h + .06)
    if g.rng.random() < .5:                                  # ploughed rows
        m = smooth(h + .1, h + .16, g.Y) * (.5 + .5 * np.sin(u * 26)) * np.clip(2.2 / z, 0, 1); g.over(m * .55, g.lit(C(122, 92, 50)))
    fy = h + g.u(.12, .17); fc = g.lit(C(214, 190, 150))
    for k in range(9): g.rect(k * .125 - .008, fy - .075, k * .125 + .008, fy + .01, fc)
    for dy in (-.055, -.022): g.rect(0, fy + dy - .007, 1, fy + dy + .007, fc * .95)
    g.zone.update(ground=(.76, .96), sky=(.06, h))


def bg_mountains(g):
    h = g.u(.54, .62); g.sky(h)
    g.mountains(h + .02, g.u(.3, .42), g.col(C(112, 118, 140), .03), haze=.28)
    if g.rng.random() < .6: g.mountains(h + .03, g.u(.14, .22), g.col(C(86, 98, 110), .03), snow=False, haze=.2)
    if g.rng.random() < .6: g.pines(h + .04, g.u(.05, .1), C(46, 92, 64), haze=.15)
    g.hill(h + .03, .02, g.col(C(104, 160, 70), .03), 1.1, dark=.7, depth=.4)
    if g.rng.random() < .4: g.flowers(14, h + .1, .99)
    g.zone.update(ground=(.76, .95), sky=(.06, h - .25))


def bg_lake(g):
    h = g.u(.42, .5); g.sky(h)
    if g.rng.random() < .6: g.mountains(h + .005, g.u(.16, .28), C(112, 122, 140), haze=.32)
    g.pines(h + .008, g.u(.05, .1), C(44, 92, 70), haze=.15)
    k = int(h * g.R); top = g.img[:k][::-1].copy()            # mirror image in the water
    shore = g.curve(g.u(.80, .86), .03, .7)
    g.water(h, C(40, 116, 140), C(70, 140, 160), None, k=.07)
    n = min(len(top), g.R - k); f = np.linspace(.55, .12, n).astype(F)[:, None, None]
    g.img[k:k + n] = lerp(g.img[k:k + n], top[:n], f)
    c = g.lit(g.col(C(116, 160, 72), .02)); g.over(g.below(shore), c * (1 + .07 * g.noise('grass')[..., None]))
    g.zone.update(ground=(.86, .97), sky=(.06, h - .15), water=(h + .14, .80))


def bg_river(g):
    h = g.u(.42, .5); c = _grassy(g, h)
    mid = .5 + .16 * np.sin(g.Y * 9 + g.u(0, 6)) * (1.2 - g.Y) + g.u(-.05, .05); w = .025 + .38 * np.clip(g.Y - h - .03, 0, 1) ** 1.25
    m = smooth(1.5 / g.R, -1.5 / g.R, np.abs(g.X - mid) - w) * (g.Y > h + .04)
    g.over(smooth(.012, 0, np.abs(g.X - mid) - w) * (g.Y > h + .04) * .5, g.lit(C(180, 160, 110)))
    wc = g.lit(C(64, 150, 200)) * (1 + .09 * g.noise('water')[..., None]); g.over(m, np.clip(lerp(wc, g.hz, .2), 0, 1))
    for _ in range(int(g.rng.integers(1, 5))): g.sprite(g.pick('🌳', '🌲'), g.pick(g.u(0, .22), g.u(.78, 1)), h + g.u(.05, .13), g.u(.16, .3), haze=.1)
    g.zone.update(ground=(.78, .96), sky=(.06, h), water=(h + .3, .93))


def bg_garden(g):
    h = g.u(.44, .5); _grassy(g, h)
    fy = h + .1; fc = g.lit(g.pick(C(250, 250, 246), C(196, 150, 104), C(240, 236, 220))); n = int(g.rng.integers(12, 18)); w = 1 / n
    hg = g.lit(C(60, 120, 56)); 
    if g.rng.random() < .5: g.hill(fy - .16, .012, C(66, 128, 60), 4, tex='mid', k=.14, rough=.04, depth=.2)
    for y in (fy - .10, fy - .03): g.rect(0, y - .01, 1, y + .01, fc * .9)
    for k in range(n):
        x = (k + .5) * w; g.rect(x - w * .34, fy - .13, x + w * .34, fy + .015, fc); g.poly([(x - w * .34, fy - .13), (x + w * .34, fy - .13), (x, fy - .165)], fc)
    for _ in range(int(g.rng.integers(4, 9))):
        y = g.u(fy + .02, fy + .13); g.sprite(g.pick('🌷', '🌻', '🌹', '🌼', '🌷'), g.rng.random(), y + .06, g.u(.09, .15), flip=False)
    g.flowers(int(g.rng.integers(8, 30)), fy + .08, .99); g.zone.update(ground=(.76, .96), sky=(.06, h - .1))


def bg_park(g):
    h = g.u(.44, .5); _grassy(g, h)
    if g.rng.random() < .45:                                 # skyline behind the trees
        for _ in range(9):
            x, w, hh = g.u(0, 1), g.u(.04, .09), g.u(.08, .26); g.rect(x, h - hh, x + w, h + .04, lerp(g.lit(C(120, 135, 160)), g.hz, .5))
        g.hill(h + .05, .01, C(110, 172, 72), .8, depth=.5, dark=.75)
    for y, n, hh, hz in ((h + .05, 7, .2, .25), (h + .1, 4, .34, .05)):
        for x in np.linspace(0, 1, n) + g.rng.normal(0, .06, n): 
            if hz < .1 and abs(x - .5) < .22: continue
            g.sprite(g.pick('🌳', '🌳', '🌲'), x, y + g.u(0, .02), hh * g.u(.85, 1.15), haze=hz)
    k = g.u(-.3, .3); b = h + .07; t = np.clip((g.Y - b) / (1 - b), 0, 1); mid = .5 + k * (1 - t) ** 2 + .12 * np.sin(t * 4 + g.u(0, 6)) * (1 - t)
    m = smooth(1.5 / g.R, -1.5 / g.R, np.abs(g.X - mid) - (.012 + .26 * t ** 1.4)) * (g.Y > b)
    g.over(m, g.lit(C(222, 202, 164)) * (1 + .04 * g.noise('fine')[..., None]))
    if g.rng.random() < .6:                                  # bench
        x, y, s = g.pick(g.u(.12, .25), g.u(.75, .88)), h + g.u(.2, .26), g.u(.1, .13); wd, mt = g.lit(C(150, 96, 54)), g.lit(C(60, 60, 66))
        for dx in (-.8, .8): g.rect(x + dx * s - .007, y - s * .9, x + dx * s + .007, y, mt)
        for k2, yy in enumerate((-.85, -.66, -.4)): g.rect(x - s, y + yy * s - .011, x + s, y + yy * s + .011, wd * (1 - .08 * k2), r=.004)
    g.zone.update(ground=(.74, .96), sky=(.06, h - .12))


def _buildings(g, h, n, hmin, hmax, haze, cols, win=True):
    x = -.05
    while x < 1.02:
        w, hh = g.u(.10, .2), g.u(hmin, hmax); c = lerp(g.lit(g.col(cols[int(g.rng.integers(len(cols)))], .02)), g.hz, haze)
        g.rect(x, h - hh, x + w, h + .02, c); g.rect(x + w * .86, h - hh, x + w, h + .02, c * .86); g.rect(x, h - hh, x + w, h - hh + .012, c * 1.12 if c.max() < .85 else c * .9)
        if win:
            nx = max(2, int(w / .034)); ny = max(2, int(hh / .055)); ww, wh = w / nx, hh / ny
            for i in range(nx):
                for k in range(ny):
                    on = g.rng.random() < (.5 if g.time in ('night',) else .35 if g.time == 'sunset' else .06)
                    wc = C(255, 220, 120) if on else lerp(c * .62, g.hz, .25)
                    x0, y0 = x + (i + .25) * ww, h - hh + .012 + (k + .25) * wh
                    if y0 + wh * .55 < h - .01: g.rect(x0, y0, x0 + ww * .5, y0 + wh * .55, wc)
        x += w + (g.u(0, .02) if g.rng.random() < .5 else 0)


def bg_street(g):
    h = g.u(.56, .62); g.sky(h, clouds=.4)
    cols = [C(188, 112, 88), C(214, 186, 150), C(150, 160, 176), C(120, 130, 150), C(206, 150, 110), C(170, 180, 170)]
    if g.rng.random() < .6: _buildings(g, h - .02, 8, .28, .5, .45, cols, True)
    _buildings(g, h, 6, .2, .46, .0, cols)
    g.rect(0, h, 1, h + .07, g.lit(C(190, 188, 184))); g.rect(0, h + .066, 1, h + .08, g.lit(C(150, 148, 146)))
    g.over(np.clip((g.Y - h - .08) * g.R, 0, 1) * np.ones_like(g.X), g.lit(C(86, 88, 94)) * (1 + .05 * g.noise('fine')[..., None]))
    y = h + .24; n = 6; o = g.u(0, .16)
    for k in range(-1, n + 1): g.poly([(k / n + o, y - .012), (k / n + .09 + o, y - .012), (k / n + .085 + o, y + .012), (k / n - .008 + o, y + .012)], g.lit(C(245, 225, 120)))
    for _ in range(int(g.rng.integers(0, 3))):               # street lamps
        x = g.u(.05, .95); c = g.lit(C(70, 74, 80)); g.rect(x - .006, h - .22, x + .006, h + .05, c); g.rect(x - .03, h - .235, x + .03, h - .215, c, r=.006)
        if g.time in ('night', 'sunset', 'rain'): g.glow(x, h - .21, .09, C(255, 214, 130), .7)
    for _ in range(int(g.rng.integers(0, 3))): g.sprite('🌳', g.u(0, 1), h + .05, g.u(.16, .24))
    g.zone.update(ground=(.76, .95), sky=(.06, .3))


def bg_city(g):
    h = g.u(.66, .74); g.sky(h)
    cols = [C(96, 116, 150), C(130, 150, 176), C(160, 150, 150), C(90, 96, 120), C(150, 170, 190)]
    _buildings(g, h, 10, .3, .58, .5, cols, False); _buildings(g, h, 8, .2, .5, .22, cols); _buildings(g, h + .02, 8, .1, .32, 0, cols)
    if g.rng.random() < .5: g.sunpos = None; g.water(h + .02, C(40, 80, 120), C(60, 100, 140)); wt = (h + .1, .95); gr = None
    else: g.rect(0, h + .02, 1, 1.01, g.lit(C(128, 128, 132))); g.over(np.clip((g.Y - h - .02) * g.R, 0, 1) * .5 * np.ones_like(g.X), g.lit(C(120, 120, 124)) * (1 + .1 * g.noise('fine')[..., None])); wt = None; gr = (.82, .96)
    g.zone.update(ground=gr or (.84, .96), sky=(.06, .34), water=wt)


def bg_road(g):
    h = g.u(.46, .54); kind = g.pick('grass', 'grass', 'desert', 'snow')
    if kind == 'desert': g.sky(h, clouds=.3); g.hill(h - .01, .03, C(210, 150, 100), 1, haze=.35); g.hill(h + .02, .01, C(226, 178, 112), 1, tex='fine', k=.04)
    elif kind == 'snow': g.sky(h); g.pines(h + .03, .09, C(54, 88, 84), haze=.25); g.hill(h + .02, .01, C(242, 246, 252), 1, tex='soft', k=.02, dark=.9)
    else: _grassy(g, h)
    b = h + .035; vx = .5 + g.u(-.12, .12); t = np.clip((g.Y - b) / (1 - b), 0, 1); mid = vx + (.5 - vx) * t; hw = .012 + .50 * t
    on = (g.Y > b); m = np.clip((hw - np.abs(g.X - mid)) * g.R + .5, 0, 1) * on
    g.over(m, g.lit(C(88, 90, 96)) * (1 + .045 * g.noise('fine')[..., None]))
    z = 1 / np.maximum(t, .01)
    for side in (-1, 1): g.over(np.clip((hw * .025 + .5 / g.R - np.abs(g.X - mid - side * hw * .9)) * g.R + .5, 0, 1) * on, g.lit(C(240, 240, 236)))
    dash = ((z * 1.1 + g.u(0, 1)) % 1 < .5)
    g.over(np.clip((hw * .028 + .4 / g.R - np.abs(g.X - mid)) * g.R + .5, 0, 1) * on * dash, g.lit(C(250, 214, 80)))
    if kind == 'grass':
        for _ in range(int(g.rng.integers(2, 7))): g.sprite(g.pick('🌳', '🌲'), g.pick(g.u(0, .28), g.u(.72, 1)), h + g.u(.03, .1), g.u(.1, .28), haze=.12)
    g.zone.update(ground=(.72, .95), sky=(.06, h))


def bg_railway(g):
    h = g.u(.46, .52); _grassy(g, h)
    if g.rng.random() < .4: g.pines(h + .05, .08, C(50, 100, 66), haze=.2)
    y = g.u(.74, .8); g.over(smooth(.10, .085, np.abs(g.Y - y)) * np.ones_like(g.X), g.lit(C(150, 138, 124)) * (1 + .12 * g.noise('fine')[..., None]))
    for k in range(13): x = (k + .2) / 12; g.poly([(x - .02, y - .055), (x + .012, y - .055), (x - .0, y + .065), (x - .038, y + .065)], g.lit(C(104, 72, 48)))
    for dy in (-.03, .04): g.rect(0, y + dy - .007, 1, y + dy + .007, g.lit(C(150, 154, 160))); g.rect(0, y + dy + .004, 1, y + dy + .008, g.lit(C(90, 92, 96)))
    g.zone.update(ground=(y, y + .02), sky=(.06, h))


def bg_sky(g):
    g.sky(1.05, clouds=0); z = g.noise('cloud')
    if g.time in ('day', 'morning', 'sunset', 'night') and g.rng.random() < .5:
        H = g.horizon; g.horizon = 1; g.clouds(1.0); g.horizon = H
    else: g.clouds(1.2)
    g.zone.update(ground=None, sky=(.15, .85), water=None, float_=(.2, .8))


def bg_space(g):
    g.time = 'space'; a = g.pick(C(10, 8, 30), C(4, 6, 20), C(14, 6, 26)); g.img[:] = a; g.horizon = .5; g.amb = np.ones(3, F); g.hz = a
    for _ in range(2):
        z = g.noise('soft'); g.over(smooth(.1, 2.2, z) * g.u(.25, .6), g.pick(C(90, 40, 140), C(30, 70, 150), C(150, 40, 100), C(20, 110, 120)))
    g.stars(1.0, int(g.u(120, 240)))
    if g.rng.random() < .6:                                  # a planet
        cx, cy, r = g.pick(g.u(.05, .25), g.u(.75, .95)), g.u(.08, .9), g.u(.08, .24); c = g.pick(C(200, 120, 80), C(90, 140, 200), C(190, 170, 130), C(120, 180, 150), C(180, 110, 160))
        w = g.win(cx - r, cy - r, cx + r, cy + r)
        if w:
            dx = (g.X[:, w[1]] - cx) / r; dy = (g.Y[w[0]] - cy) / r; d = np.sqrt(dx * dx + dy * dy)
            band = g.noise('water')[w]; sh = np.clip(.25 + .85 * (-dx * .6 - dy * .6 + np.sqrt(np.clip(1 - d * d, 0, 1)) * .6), .06, 1.1)
            g.blend(w, np.clip((1 - d) * r * g.R + .5, 0, 1), np.clip(c * (1 + .12 * band[..., None]) * sh[..., None], 0, 1))
    g.zone.update(ground=None, sky=(.15, .85), float_=(.2, .8))


def bg_moon(g):
    g.time = 'space'; g.img[:] = C(4, 5, 14); g.amb = np.ones(3, F); g.hz = C(10, 10, 20); h = g.u(.5, .58); g.horizon = h; g.stars(h, 130)
    if g.rng.random() < .7: g.sprite('🌍', g.pick(g.u(.12, .3), g.u(.7, .88)), g.u(.24, .34), g.u(.14, .22), flip=False)
    c = C(176, 176, 182); g.hill(h, .03, c * .8, 1.3, tex='mid', k=.06, dark=.8); g.hill(h + .1, .02, c, .9, tex='mid', k=.06, dark=.75)
    for _ in range(int(g.rng.integers(6, 14))):
        y = g.u(h + .06, .98); s = (y - h) * g.u(.12, .3); x = g.rng.random(); g.ellipse(x, y, s, s * .36, c * .58); g.ellipse(x, y + s * .07, s * .9, s * .28, c * .78); g.ellipse(x, y - s * .02, s * .8, s * .22, c * .66)
    g.zone.update(ground=(.74, .95), sky=(.08, h - .1))


def bg_field(g):
    """sports field with a stand of spectators"""
    h = g.u(.44, .5); g.sky(h, clouds=.3)
    st = g.lit(C(150, 156, 168)); g.rect(0, h - .18, 1, h + .03, st)
    n = int(500); xs, ys = g.rng.random(n), h - .17 + .15 * g.rng.random(n)
    cs = np.stack([C(230, 70, 60), C(60, 110, 220), C(250, 220, 80), C(245, 245, 245), C(60, 60, 70), C(80, 180, 90)]) * g.amb
    yi, xi = (ys * g.R).astype(int), (xs * g.R).astype(int); kk = g.rng.integers(6, size=n); q = max(1, g.R // 90)
    for dy in range(q):
        for dx in range(q): g.img[np.clip(yi + dy, 0, g.R - 1), np.clip(xi + dx, 0, g.R - 1)] = cs[kk]
    g.rect(0, h - .02, 1, h + .03, g.lit(C(70, 90, 150)))
    z, u = g.depthmap(h + .02); v = (np.log(np.maximum(z, 1)) * 3.2 + g.u(0, 1)) % 1 < .5
    c = g.lit(C(84, 160, 66)); g.over(np.clip((g.Y - h - .03) * g.R, 0, 1) * np.ones_like(g.X), np.where((v * np.ones_like(g.X))[..., None] > 0, c, c * .88) * (1 + .05 * g.noise('grass')[..., None]))
    wl = g.lit(C(245, 248, 245)); y = h + g.u(.09, .13); g.rect(0, y - .004, 1, y + .004, wl); k = g.u(-.6, .6)
    if g.rng.random() < .6: g.poly([(.5 + k * .3, y), (.508 + k * .3, y), (.53 + k * 1.4, 1), (.5 + k * 1.4, 1)], wl)
    g.zone.update(ground=(.72, .95), sky=(.06, h - .2))


# ---- interiors
def _wall_floor(g, h, wall, floor='wood', light=(1, 1, 1)):
    g.horizon = h; g.amb = np.array(light, F); g.hz = wall * g.amb
    g.img[:] = g.lit(wall) * (1.04 - .10 * g.Y)[..., None] * (1 + .008 * g.noise('soft')[..., None])
    k = g.rng.random()
    if k < .25: g.img *= (1 - .05 * (np.sin(g.X * 2 * np.pi * int(g.rng.integers(9, 18))) > 0))[..., None]
    elif k < .4:
        p = int(g.rng.integers(8, 14)); dd = np.hypot((g.X * p) % 1 - .5, (g.Y * p + .5 * (np.floor(g.X * p) % 2)) % 1 - .5); g.img *= (1 - .07 * (dd < .16))[..., None]
    z, u = g.depthmap(h - .28); on = np.clip((g.Y - h) * g.R + .5, 0, 1) * np.ones_like(g.X)
    if isinstance(floor, str) and floor == 'wood':
        c = g.lit(g.col(g.pick(C(186, 134, 86), C(160, 108, 66), C(206, 162, 112)), .02)); pl = u * 5.5; idx = np.floor(pl); fr = pl - idx
        ton = .92 + .16 * ((np.sin(idx * 12.9898 + 4) * 43758.5453) % 1); cc = c * ton[..., None] * (1 + .05 * g.gather('grass', u * 2 + 9, np.minimum(z, 9) * .5 + 0 * u)[..., None])
        cc = cc * (1 - .25 * (fr < .04))[..., None]
    elif isinstance(floor, str) and floor == 'tile':
        c = g.lit(g.pick(C(226, 228, 230), C(214, 206, 194))); ch = (np.floor(u * 6) + np.floor(z * 6)) % 2; cc = c * (1 - (.12 + .2 * g.tilek) * ch)[..., None]
    else: cc = g.lit(floor) * (1 + .05 * g.noise('fine')[..., None])
    g.over(on, np.clip(cc * (.86 + .2 * g.Y)[..., None], 0, 1)); g.rect(0, h - .022, 1, h + .006, np.clip(g.lit(C(246, 244, 240)), 0, 1))


def _window(g, x, y, w, hh, time):
    sub = Canvas(g.R, g.rng, g.atlas, g.style, time); fr = C(250, 248, 244) * g.amb
    g.rect(x - .012, y - .012, x + w + .012, y + hh + .012, np.clip(fr, 0, 1))
    W = g.win(x, y, x + w, y + hh)
    if W:
        t = ((g.Y[W[0]] - y) / hh)[..., None]; xs = [q for q, _ in sub.stops]
        col = np.stack([np.interp(t[:, 0, 0], xs, [c[k] for _, c in sub.stops]) for k in range(3)], -1)[:, None].astype(F)
        g.img[W] = np.broadcast_to(col, g.img[W].shape)
        if time == 'night':
            for _ in range(8): g.ellipse(g.u(x + .01, x + w - .01), g.u(y + .01, y + hh * .8), 1 / g.R, 1 / g.R, C(255, 255, 230), .8)
        hb = y + hh * g.u(.65, .8); ww = g.win(x, hb, x + w, y + hh)
        if ww: g.img[ww] = np.clip(C(104, 168, 84) * sub.amb, 0, 1)
    g.rect(x + w / 2 - .006, y, x + w / 2 + .006, y + hh, np.clip(fr, 0, 1)); g.rect(x, y + hh / 2 - .006, x + w, y + hh / 2 + .006, np.clip(fr, 0, 1)); g.rect(x - .025, y + hh + .01, x + w + .025, y + hh + .03, np.clip(fr * .95, 0, 1))
    if g.rng.random() < .6:
        c = np.clip(g.col(g.pick(C(200, 90, 80), C(90, 130, 180), C(230, 200, 140), C(130, 170, 130)), .03) * g.amb, 0, 1)
        for sx in (-1, 1):
            x0 = x - .04 if sx < 0 else x + w - .03; g.rect(x0, y - .03, x0 + .07, y + hh + .05, c, r=.008)
            for k in (.02, .045): g.rect(x0 + k, y - .02, x0 + k + .006, y + hh + .05, c * .85)
        g.rect(x - .06, y - .04, x + w + .06, y - .025, np.clip(C(120, 90, 60) * g.amb, 0, 1))


def _frame(g, x, y, w, h):
    g.rect(x, y, x + w, y + h, g.lit(g.pick(C(120, 84, 50), C(40, 40, 44), C(214, 180, 110)))); e = .014
    g.rect(x + e, y + e, x + w - e, y + h - e, g.lit(g.col(g.pick(C(150, 190, 220), C(230, 190, 150), C(240, 236, 226)), .05)))
    g.poly([(x + e, y + h - e), (x + w * .4, y + h * .45), (x + w * .65, y + h * .7), (x + w * .8, y + h * .55), (x + w - e, y + h - e)], g.lit(g.col(C(90, 140, 100), .06)))


ROOM_LIGHT = {'day': (1, 1, 1), 'morning': (1, .97, .92), 'sunset': (1, .88, .78), 'night': (.62, .58, .60), 'cloudy': (.93, .94, .95), 'rain': (.86, .88, .90), 'snowfall': (.97, .98, 1), 'fog': (.95, .95, .95)}


def bg_livingroom(g):
    t = g.time; h = g.u(.60, .66); wall = g.col(g.pick(C(236, 224, 204), C(204, 220, 224), C(226, 210, 214), C(212, 222, 200), C(240, 232, 220), C(150, 178, 190)), .015)
    _wall_floor(g, h, wall, 'wood', ROOM_LIGHT[t])
    wx = g.pick(g.u(.06, .14), g.u(.62, .70)); _window(g, wx, g.u(.12, .16), .25, .26, t)
    px = .55 if wx < .3 else .1; 
    if g.rng.random() < .8: _frame(g, px + g.u(0, .08), g.u(.14, .2), g.u(.14, .22), g.u(.12, .17))
    c = g.col(g.pick(C(80, 130, 150), C(176, 90, 80), C(120, 140, 110), C(196, 170, 140), C(110, 110, 130), C(210, 160, 70)), .03); sx = g.u(.2, .5); y = h + .04; w = .42
    L = g.lit
    g.ellipse(sx + w / 2, y + .02, w * .6, .025, L(C(70, 50, 40)), .35, .03)
    g.rect(sx, y - .22, sx + w, y - .02, L(c * .92), r=.03); g.rect(sx - .03, y - .15, sx + .05, y + .0, L(c * 1.04), r=.025); g.rect(sx + w - .05, y - .15, sx + w + .03, y + .0, L(c * 1.04), r=.025)
    g.rect(sx + .04, y - .12, sx + w / 2 - .004, y - .02, L(c * 1.1), r=.015); g.rect(sx + w / 2 + .004, y - .12, sx + w - .04, y - .02, L(c * 1.1), r=.015)
    if g.rng.random() < .7: q = L(g.pick(C(240, 190, 80), C(240, 240, 230), C(200, 80, 90))); g.rect(sx + .07, y - .17, sx + .16, y - .08, q, r=.02)
    if g.rng.random() < .6: g.sprite('🪴', g.pick(g.u(.04, .12), g.u(.88, .96)), h + .06, g.u(.18, .26))
    if g.rng.random() < .6:
        lx = sx + w + .1 if sx < .35 else sx - .1; g.rect(lx - .006, y - .3, lx + .006, y + .02, L(C(80, 70, 60))); g.poly([(lx - .03, y - .4), (lx + .03, y - .4), (lx + .06, y - .29), (lx - .06, y - .29)], np.clip(L(C(250, 232, 190)) * (1.5 if t == 'night' else 1), 0, 1))
        if t in ('night', 'sunset'): g.glow(lx, y - .32, .25, C(255, 210, 130), .55)
    rc = g.col(g.pick(C(190, 70, 70), C(90, 120, 170), C(230, 220, 200), C(120, 150, 120)), .03); g.ellipse(.5, h + .25, .42, .11, L(rc)); g.ellipse(.5, h + .25, .36, .09, L(rc * 1.12)); g.ellipse(.5, h + .25, .33, .08, L(rc))
    g.zone.update(ground=(.82, .96), sky=(.1, .4))


def bg_bedroom(g):
    t = g.time; h = g.u(.58, .64); wall = g.col(g.pick(C(196, 212, 232), C(236, 214, 220), C(232, 226, 208), C(206, 224, 210), C(214, 206, 232)), .015)
    _wall_floor(g, h, wall, g.pick('wood', C(196, 180, 168)), ROOM_LIGHT[t]); L = g.lit
    _window(g, .08 if g.rng.random() < .5 else .68, .12, .22, .26, t)
    c = g.col(g.pick(C(100, 140, 200), C(210, 110, 120), C(130, 180, 140), C(240, 200, 120), C(170, 140, 200)), .03); bx = g.u(.28, .42); w = .46; y = h + .10; wd = C(150, 100, 62)
    g.rect(bx - .02, y - .34, bx + w + .02, y - .06, L(wd), r=.02); g.rect(bx, y - .12, bx + w, y + .08, L(c), r=.02)
    g.rect(bx + .02, y - .19, bx + w * .47, y - .09, L(C(252, 252, 250)), r=.03); g.rect(bx + w * .53, y - .19, bx + w - .02, y - .09, L(C(246, 246, 244)), r=.03)
    g.rect(bx - .005, y - .08, bx + w + .005, y - .035, L(C(250, 250, 250)), r=.01); g.rect(bx - .01, y + .06, bx + w + .01, y + .10, L(wd * .85))
    nx = bx - .14 if bx > .33 else bx + w + .04; g.rect(nx, y - .12, nx + .1, y + .06, L(wd * 1.05), r=.006); g.ellipse(nx + .05, y - .04, .008, .008, L(C(240, 210, 130)))
    g.poly([(nx + .03, y - .25), (nx + .07, y - .25), (nx + .09, y - .17), (nx + .01, y - .17)], np.clip(L(C(255, 236, 190)) * (1.6 if t == 'night' else 1), 0, 1)); g.rect(nx + .045, y - .17, nx + .055, y - .12, L(C(110, 80, 60)))
    if t == 'night': g.glow(nx + .05, y - .2, .2, C(255, 210, 130), .6)
    g.ellipse(.5, h + .30, .36, .07, L(g.col(g.pick(C(240, 236, 226), C(200, 120, 130), C(120, 150, 190)), .03)))
    g.zone.update(ground=(.84, .96), sky=(.1, .4))


def bg_kitchen(g):
    t = g.time; h = g.u(.60, .66); g.tilek = 0
    wall = g.pick(C(240, 240, 236), C(206, 226, 230), C(244, 232, 206), C(214, 230, 210)); g.amb = np.array(ROOM_LIGHT[t], F); g.horizon = h; g.hz = wall
    g.img[:] = g.lit(wall); n = int(g.rng.integers(9, 14)); a, b = (g.X * n) % 1, (g.Y * n) % 1
    g.img *= (1 - .08 * ((a < .07) | (b < .07)))[..., None]; g.img *= (1 + .04 * ((np.sin(np.floor(g.X * n) * 12.98 + np.floor(g.Y * n) * 78.2) * 43758.5) % 1 - .5))[..., None]
    _window(g, g.pick(.36, .1, .62), .1, .26, .24, t); cab = g.col(g.pick(C(250, 250, 246), C(120, 150, 160), C(196, 148, 100), C(150, 176, 150)), .02)
    for x0 in (0.0, .74):
        if g.rng.random() < .5 : continue
        for k in range(2): g.rect(x0 + k * .13, -.02, x0 + k * .13 + .126, .26, g.lit(cab * .97), r=.004); g.rect(x0 + k * .13 + .015, .0, x0 + k * .13 + .111, .24, g.lit(cab), r=.004); g.ellipse(x0 + k * .13 + (.1 if k == 0 else .026), .2, .007, .007, g.lit(C(110, 100, 90)))
    top = g.col(g.pick(C(196, 150, 104), C(90, 92, 100), C(222, 220, 214)), .02)
    g.over(np.clip((g.Y - h) * g.R, 0, 1) * np.ones_like(g.X), np.clip(g.lit(top) * (1.05 - .12 * (g.Y - h))[..., None] * (1 + .03 * g.noise('wood')[..., None] + .03 * g.noise('fine')[..., None]), 0, 1))
    g.rect(0, .95, 1, .965, g.lit(top * .7)); g.rect(0, .965, 1, 1.01, g.lit(cab * .9))
    g.zone.update(ground=(.78, .92), sky=(.1, .4))


def bg_bathroom(g):
    t = g.time; h = g.u(.60, .66); g.tilek = 1; wall = g.pick(C(206, 230, 236), C(236, 240, 240), C(214, 232, 214), C(240, 220, 214))
    _wall_floor(g, h, wall, 'tile', ROOM_LIGHT[t]); n = int(g.rng.integers(8, 12)); w = g.Y < h - .02
    g.img *= np.where(w & ((((g.X * n) % 1) < .06) | (((g.Y * n) % 1) < .06)), .9, 1).astype(F)[..., None]
    x = g.u(.12, .6); g.rect(x, .1, x + .24, .4, g.lit(C(160, 170, 176)), r=.02); g.rect(x + .012, .112, x + .228, .388, g.lit(C(206, 228, 238)), r=.015); g.poly([(x + .03, .34), (x + .14, .13), (x + .18, .13), (x + .07, .34)], C(255, 255, 255), .4)
    tx = g.pick(.78, .05); g.rect(tx - .01, .3, tx + .17, .312, g.lit(C(170, 170, 174))); g.rect(tx, .3, tx + .14, .5, g.lit(g.col(g.pick(C(240, 120, 110), C(100, 160, 200), C(250, 220, 120)), .03)), r=.006)
    g.zone.update(ground=(.78, .95), sky=(.1, .4))


def bg_table(g, kind=None):
    """close-up of a table top with an out-of-focus room behind"""
    t = g.time; h = g.u(.50, .58); g.horizon = h; g.amb = np.array(ROOM_LIGHT[t], F); wall = g.col(g.pick(C(226, 214, 196), C(178, 200, 206), C(208, 190, 180), C(176, 190, 168), C(120, 140, 160), C(90, 84, 90)), .02); g.hz = wall
    g.img[:] = g.lit(wall) * (1.05 - .2 * g.Y)[..., None]
    for _ in range(int(g.rng.integers(4, 10))):
        r = g.u(.05, .13); g.ellipse(g.u(0, 1), g.u(0, h), r, r, np.clip(g.lit(g.col(wall, .10)) * 1.05, 0, 1), .5, r * .7)
    if g.rng.random() < .4: x = g.u(.05, .6); g.rect(x, .05, x + .3, h - .1, np.clip(Canvas(8, g.rng, None, None, t).hz, 0, 1), .6, r=.02)
    c = g.col(g.pick(C(176, 120, 72), C(140, 92, 56), C(206, 160, 110), C(110, 74, 50)), .02)
    on = np.clip((g.Y - h) * g.R + .5, 0, 1) * np.ones_like(g.X)
    if kind == 'cloth':
        cc = g.pick(C(250, 250, 248), C(240, 236, 226)); d = g.pick(C(220, 60, 60), C(70, 110, 190), C(80, 150, 90), None); z, u = g.depthmap(h - .5); base = g.lit(cc) * np.ones_like(g.img)
        if d is not None: base = lerp(base, g.lit(d), (.45 * (((u * 7) % 1) < .5) + .45 * (((z * 9) % 1) < .5))[..., None])
        cc = base * (1 + .012 * g.noise('fine')[..., None])
    else:
        z, u = g.depthmap(h - .22); pl = (np.log(z) * 3.2); idx = np.floor(pl); fr = pl - idx; ton = .93 + .14 * ((np.sin(idx * 12.9898 + g.u(0, 9)) * 43758.5453) % 1)
        cc = g.lit(c) * (ton * (1 - .3 * (fr < .05)))[..., None] * (1 + .07 * g.noise('wood')[..., None] + .02 * g.noise('fine')[..., None])
    g.over(on, np.clip(cc * (.88 + .22 * g.Y)[..., None], 0, 1)); g.rect(0, h - .004, 1, h + .006, g.lit(c * 1.2), .5)
    g.zone.update(ground=(.76, .92), sky=(.1, .4))


def bg_tablecloth(g): bg_table(g, 'cloth')


def bg_picnic(g):
    h = g.u(.36, .42); _grassy(g, h); z, u = g.depthmap(h - .2); k = g.pick(C(220, 50, 50), C(60, 110, 200), C(230, 120, 60))
    q = g.lit(lerp(np.ones(3, F), k, .0)); m = (.5 * (((u * 5.2) % 1) < .5) + .5 * (((z * 6.5) % 1) < .5))[..., None]
    d = np.maximum(np.abs(g.X - .5) - (.30 + .28 * (g.Y - .52)), np.maximum(.52 - g.Y, g.Y - 1.2)); g.over(np.clip(.5 - d * g.R, 0, 1), lerp(g.lit(C(252, 250, 246)), g.lit(k), m) * (1 + .02 * g.noise('fine')[..., None]))
    g.flowers(10, h + .08, .99) if g.rng.random() < .5 else None
    g.zone.update(ground=(.74, .93), sky=(.06, h))


def bg_stage(g):
    c = g.col(g.pick(C(150, 20, 36), C(60, 30, 110), C(24, 60, 120)), .02); h = g.u(.66, .72); g.horizon = h; g.amb = np.array((.95, .92, .9), F); g.hz = c * .4; ph = g.u(0, 6)
    f = np.sin(g.X * 46 + ph + .6 * np.sin(g.X * 9)) * .5 + .5; g.img[:] = (c * 1.0) * (.35 + .65 * f)[..., None] * (1.0 - .35 * g.Y)[..., None]
    on = np.clip((g.Y - h) * g.R + .5, 0, 1) * np.ones_like(g.X); z, u = g.depthmap(h - .3); fr = (u * 6) % 1
    g.over(on, np.clip(C(120, 78, 48) * (1 - .25 * (fr < .05))[..., None] * (1 + .05 * g.noise('wood')[..., None]), 0, 1))
    for x in (g.u(.2, .4), g.u(.6, .8)):
        m = np.exp(-((g.X - x - (.5 - x) * g.Y) / (.06 + .24 * g.Y)) ** 2) * .28; g.img += m[..., None] * C(255, 240, 200)
    g.ellipse(.5, .88, .42, .09, C(255, 236, 190), .35, .12); np.clip(g.img, 0, 1, out=g.img); g.zone.update(ground=(.82, .94), sky=(.1, .4))


PLAIN = {'white': C(250, 250, 250), 'gray': C(150, 152, 156), 'black': C(22, 22, 26), 'red': C(214, 52, 48), 'orange': C(245, 146, 52), 'yellow': C(250, 214, 76), 'green': C(84, 170, 92), 'blue': C(62, 122, 210), 'light blue': C(160, 208, 240), 'purple': C(130, 86, 180), 'pink': C(246, 164, 190), 'brown': C(134, 92, 62)}


def bg_plain(g, color=None):
    c = PLAIN[color or g.pick(*PLAIN)]; c = np.clip(c + g.rng.normal(0, .012, 3).astype(F), 0, 1); g.time = 'day'; g.amb = np.ones(3, F); g.hz = c; g.horizon = .7
    v = 1 + .05 * (.5 - g.Y) - .10 * ((g.X - .5) ** 2 + (g.Y - .45) ** 2)
    g.img[:] = np.clip(c * v[..., None], 0, 1); g.zone.update(ground=(.80, .88), sky=(.3, .6), float_=(.4, .6), plain=True)


# name: (function, allowed times, kind, place phrases)
OUT = ('day', 'day', 'day', 'morning', 'sunset', 'night', 'cloudy', 'rain', 'fog'); CLR = ('day', 'day', 'day', 'morning', 'sunset', 'night', 'cloudy'); IN = ('day', 'day', 'day', 'sunset', 'night')
BG = {
    'beach': (bg_beach, CLR + ('rain',), 'ground', ['on a beach', 'on the beach', 'at the beach', 'on a sandy beach', 'by the sea', 'at the seaside', 'on the sand by the ocean', 'on the shore']),
    'ocean': (bg_ocean, OUT, 'water', ['on the ocean', 'in the ocean', 'on the sea', 'at sea', 'in the water', 'on the open sea']),
    'underwater': (bg_underwater, ('day', 'day', 'day', 'night'), 'under', ['underwater', 'under the sea', 'under water', 'at the bottom of the sea', 'in the deep blue sea']),
    'snow': (bg_snow, CLR + ('snowfall', 'snowfall'), 'ground', ['in the snow', 'on a snowy field', 'in a snowy landscape', 'in a winter landscape', 'on snow', 'in winter']),
    'forest': (bg_forest, OUT, 'ground', ['in a forest', 'in the forest', 'in the woods', 'among the trees', 'in a green forest']),
    'autumn': (bg_autumn, OUT, 'ground', ['in an autumn forest', 'in autumn', 'in the fall', 'among autumn trees']),
    'jungle': (bg_jungle, ('day', 'day', 'rain', 'sunset'), 'ground', ['in the jungle', 'in a jungle', 'in a tropical forest', 'in the rainforest']),
    'desert': (bg_desert, CLR, 'ground', ['in the desert', 'in a desert', 'on a sand dune', 'in the sand dunes', 'in a sandy desert']),
    'savanna': (bg_savanna, CLR, 'ground', ['in the savanna', 'on the african plains', 'in dry grass', 'on the savannah']),
    'meadow': (bg_meadow, OUT, 'ground', ['in a meadow', 'on the grass', 'in a grassy field', 'in a green field', 'on a green hill', 'in the grass']),
    'farm': (bg_farm, OUT, 'ground', ['on a farm', 'on the farm', 'in a farm field', 'in front of a fence']),
    'mountains': (bg_mountains, OUT, 'ground', ['in the mountains', 'in front of mountains', 'with mountains in the background', 'in front of a snowy mountain']),
    'lake': (bg_lake, OUT, 'lake', ['by a lake', 'at a lake', 'near a lake', 'at the lake']),
    'river': (bg_river, CLR, 'lake', ['by a river', 'near a river', 'at a river']),
    'garden': (bg_garden, CLR + ('rain',), 'ground', ['in a garden', 'in the garden', 'in a flower garden', 'in the yard', 'in front of a garden fence']),
    'park': (bg_park, OUT, 'ground', ['in a park', 'in the park', 'at the park']),
    'street': (bg_street, OUT, 'ground', ['on a city street', 'on a street', 'on the street', 'in the city', 'in front of buildings', 'downtown']),
    'city': (bg_city, CLR + ('rain', 'fog'), 'city', ['in front of a city skyline', 'with a city in the background', 'in front of skyscrapers']),
    'road': (bg_road, OUT, 'ground', ['on a road', 'on the road', 'on a country road', 'on an empty road', 'on a highway']),
    'railway': (bg_railway, OUT, 'ground', ['on the train tracks', 'on a railway', 'on railroad tracks']),
    'sky': (bg_sky, ('day', 'day', 'day', 'morning', 'sunset', 'night', 'cloudy'), 'sky', ['in the sky', 'high in the sky', 'in the sky', 'in the air']),
    'space': (bg_space, ('day',), 'sky', ['in space', 'in outer space', 'among the stars', 'in a starry universe']),
    'moon': (bg_moon, ('day',), 'ground', ['on the moon', 'on the surface of the moon']),
    'stadium': (bg_field, CLR, 'ground', ['in a stadium', 'on a sports field', 'on a soccer field', 'on a playing field']),
    'living room': (bg_livingroom, IN + ('rain',), 'floor', ['in a living room', 'in the living room', 'in a room with a sofa', 'on the floor of a living room', 'inside a house']),
    'bedroom': (bg_bedroom, IN, 'floor', ['in a bedroom', 'in the bedroom', 'in a room with a bed']),
    'kitchen': (bg_kitchen, IN, 'surface', ['in a kitchen', 'on a kitchen counter', 'in the kitchen', 'on the counter']),
    'bathroom': (bg_bathroom, IN, 'floor', ['in a bathroom', 'in the bathroom']),
    'table': (bg_table, ('day', 'day', 'day', 'night'), 'surface', ['on a table', 'on a wooden table', 'on top of a table', 'on the table', 'on a desk']),
    'tablecloth': (bg_tablecloth, ('day', 'day', 'day', 'night'), 'surface', ['on a table', 'on a tablecloth', 'on a dining table', 'on a table with a cloth']),
    'picnic': (bg_picnic, ('day', 'day', 'morning', 'sunset', 'cloudy'), 'surface', ['on a picnic blanket', 'at a picnic', 'on a blanket in the grass']),
    'stage': (bg_stage, ('day',), 'floor', ['on a stage', 'on the stage', 'in front of a curtain']),
    'plain': (bg_plain, ('day',), 'plain', []),
}
PLACE_ONLY = {
    'beach': ['a beach', 'a sandy beach', 'the seaside', 'a beach and the sea'], 'ocean': ['the ocean', 'the sea', 'the open sea', 'ocean waves'], 'underwater': ['an underwater scene', 'the bottom of the sea'],
    'snow': ['a snowy landscape', 'a winter landscape', 'a snowy field'], 'forest': ['a forest', 'a green forest', 'trees in a forest', 'the woods'], 'autumn': ['an autumn forest', 'trees with orange leaves'],
    'jungle': ['a jungle', 'a tropical jungle'], 'desert': ['a desert', 'sand dunes', 'a sandy desert'], 'savanna': ['the savanna', 'the african savanna'], 'meadow': ['a meadow', 'a green field', 'a grassy field', 'green hills'],
    'farm': ['a farm', 'a field with a fence'], 'mountains': ['mountains', 'a mountain landscape', 'snowy mountains'], 'lake': ['a lake', 'a calm lake'], 'river': ['a river', 'a river through a green field'],
    'garden': ['a garden', 'a garden with flowers', 'a garden with a fence'], 'park': ['a park', 'a path in a park'], 'street': ['a city street', 'a street with buildings'], 'city': ['a city skyline', 'tall buildings', 'a city'],
    'road': ['a road', 'an empty road', 'a country road'], 'railway': ['train tracks', 'a railway'], 'sky': ['the sky', 'clouds in the sky'], 'space': ['outer space', 'stars in space', 'a starry universe'], 'moon': ['the surface of the moon'],
    'stadium': ['a stadium', 'a soccer field'], 'living room': ['a living room', 'a room with a sofa'], 'bedroom': ['a bedroom', 'a room with a bed'], 'kitchen': ['a kitchen', 'a kitchen counter'], 'bathroom': ['a bathroom', 'a bathroom with a mirror'],
    'table': ['a wooden table', 'an empty table'], 'tablecloth': ['a table with a tablecloth'], 'picnic': ['a picnic blanket on the grass'], 'stage': ['a stage with a curtain', 'an empty stage'], 'plain': [],
}
TIME_WORDS = {
    'day': ['on a sunny day', 'in the daytime', 'during the day', 'on a clear day'], 'morning': ['in the morning', 'at sunrise', 'at dawn', 'in the early morning'], 'sunset': ['at sunset', 'at dusk', 'in the evening', 'in the sunset'],
    'night': ['at night', 'at night', 'in the dark', 'by night'], 'cloudy': ['on a cloudy day', 'under a cloudy sky', 'on a gray day'], 'rain': ['in the rain', 'on a rainy day', 'in rainy weather'],
    'snowfall': ['while it is snowing', 'in falling snow', 'on a snowy day'], 'fog': ['in the fog', 'on a foggy day', 'in the mist'],
}
COLORS = {'red': (.0, .88, .92), 'orange': (.075, .92, 1.0), 'yellow': (.14, .88, 1.0), 'green': (.36, .75, .72), 'blue': (.59, .82, .90), 'purple': (.76, .62, .78), 'pink': (.92, .48, 1.0), 'brown': (.07, .62, .58), 'black': (0, 0, .22), 'white': (0, 0, 1.0), 'gray': (0, 0, .62)}

# backgrounds that suit a category: list of (name, weight); '*' = any outdoor ground
GROUND = [k for k, v in BG.items() if v[2] == 'ground' and k not in ('moon', 'railway')]
_nat = {'beach': 3, 'snow': 3, 'forest': 3, 'meadow': 4, 'desert': 2, 'mountains': 2, 'park': 2, 'garden': 1.5, 'farm': 1.5, 'street': 1.5, 'savanna': 1.5, 'autumn': 1.2, 'jungle': 1.2, 'road': 1.5, 'stadium': .5, 'living room': 1.5, 'bedroom': .6, 'lake': .8, 'river': .8, 'city': .5, 'plain': 2.5, 'moon': .3, 'kitchen': .4, 'stage': .3}
SUIT = {
    'land': _nat, 'head': {**_nat, 'plain': 3}, 'bird': {**_nat, 'lake': 2}, 'toy': {**_nat, 'living room': 4, 'bedroom': 2, 'table': 2}, 'prop': {**_nat, 'living room': .3, 'bedroom': .1},
    'person': {**_nat, 'street': 4, 'beach': 4, 'park': 3}, 'bust': {**_nat, 'street': 3, 'kitchen': 1.5, 'living room': 2}, 'ball': {'stadium': 4, 'park': 2, 'beach': 3, 'meadow': 3, 'garden': 1, 'living room': 1.5, 'street': 1, 'snow': 1, 'plain': 2, 'table': 1, 'desert': .6},
    'skiing': {'snow': 1}, 'personw': {'ocean': 6, 'lake': 1.5, 'plain': .5}, 'flyer': {**_nat, 'sky': 5, 'garden': 4, 'forest': 3}, 'kite': {'sky': 3, 'beach': 4, 'meadow': 4, 'park': 3, 'street': 1, 'snow': 1, 'mountains': 1.5, 'plain': 2, 'city': 1, 'living room': .6, 'garden': 1},
    'sea': {'underwater': 9, 'plain': 1.5, 'table': .4, 'beach': .4, 'ocean': .4}, 'food': {'table': 5, 'tablecloth': 4, 'kitchen': 3, 'picnic': 2, 'plain': 3, 'beach': .7, 'meadow': .6, 'snow': .5, 'desert': .3, 'street': .2, 'forest': .2, 'space': .2, 'moon': .1, 'living room': .4},
    'road': {'street': 6, 'road': 6, 'beach': 1.5, 'desert': 2, 'snow': 2, 'forest': 1.5, 'mountains': 2, 'meadow': 1.5, 'city': 1.5, 'farm': 1, 'plain': 2, 'park': .6, 'moon': .2, 'autumn': .8, 'jungle': .4, 'garden': .4, 'savanna': .8, 'stadium': .2, 'living room': .2},
    'rail': {'railway': 8, 'snow': 1, 'mountains': 1, 'forest': .7, 'desert': .8, 'meadow': 1, 'plain': 1, 'city': .7, 'beach': .4, 'street': .7}, 'ship': {'ocean': 8, 'lake': 3, 'river': 1, 'city': 1, 'beach': 1, 'plain': .7},
    'air': {'sky': 8, 'mountains': 2, 'beach': 1.5, 'city': 2, 'snow': 1, 'desert': 1, 'meadow': 1.5, 'ocean': 1.5, 'street': .7, 'plain': 1, 'forest': .7, 'savanna': .6, 'road': .6}, 'space': {'space': 8, 'sky': 2, 'moon': 2, 'plain': .8, 'desert': .6, 'city': .7, 'mountains': .6, 'meadow': .6, 'beach': .4},
    'plant': {'meadow': 4, 'park': 2, 'garden': 2, 'snow': 2, 'beach': 2, 'desert': 2, 'mountains': 2, 'lake': 1, 'river': 1, 'road': 1, 'street': 1, 'farm': 1, 'savanna': 1, 'plain': 2, 'autumn': .4, 'moon': .2, 'living room': .4}, 'flower': {'garden': 4, 'meadow': 4, 'table': 2, 'tablecloth': 1, 'park': 1, 'forest': 1, 'plain': 3, 'kitchen': .6, 'snow': .6, 'desert': .4, 'beach': .4, 'living room': .7, 'mountains': .7, 'lake': .4, 'farm': .7},
    'building': {'meadow': 4, 'mountains': 3, 'snow': 3, 'beach': 2.5, 'desert': 2, 'lake': 2, 'forest': 2, 'park': 1.5, 'road': 2, 'street': 1, 'farm': 1.5, 'city': 1, 'river': 1.5, 'garden': 1.5, 'autumn': 1.5, 'savanna': .8, 'jungle': .7, 'plain': 1.5, 'moon': .3},
    'furn': {'living room': 5, 'bedroom': 3, 'bathroom': 1.5, 'plain': 3, 'beach': .8, 'meadow': .7, 'street': .5, 'kitchen': .3, 'snow': .4, 'forest': .4, 'desert': .3, 'stage': .7}, 'object': {'table': 6, 'tablecloth': 1.5, 'kitchen': 1.5, 'plain': 5, 'living room': 1.5, 'bedroom': 1, 'beach': .8, 'meadow': .6, 'snow': .6, 'bathroom': .6, 'picnic': .5, 'desert': .4, 'street': .4, 'forest': .4, 'stage': .2},
    'cloth': {'plain': 5, 'table': 2, 'bedroom': 2, 'living room': 1, 'beach': .6, 'snow': .4, 'meadow': .4, 'street': .3, 'stage': .4}, 'music': {'stage': 4, 'living room': 2, 'bedroom': 1, 'plain': 4, 'table': 1.2, 'park': .7, 'beach': .7, 'street': .5, 'meadow': .6, 'snow': .3},
    'sign': {'street': 5, 'road': 4, 'plain': 2, 'city': 1, 'snow': .7, 'desert': .7, 'beach': .4, 'park': .5, 'forest': .4}, 'sky': {'sky': 5, 'meadow': 1, 'ocean': 1, 'mountains': 1, 'desert': 1, 'city': 1, 'beach': 1, 'snow': .7, 'plain': 2, 'lake': .7, 'road': .5, 'forest': .5},
}
FORCE_TIME = {'sun': ('day', 'morning'), 'moon': ('night',), 'crescent moon': ('night',), 'star': ('night',), 'rainbow': ('day', 'cloudy', 'rain'), 'cloud': ('day', 'morning', 'cloudy'), 'snowflake': ('day', 'cloudy', 'night'), 'comet': ('night',), 'saturn': ('night',), 'ghost': ('night', 'night', 'day', 'fog')}
SPECIAL_BG = {'skier': 'snow', 'snowboarder': 'snow', 'snowman': 'snow', 'sled': 'snow', 'penguin': 'snow', 'polar bear': 'snow', 'cactus': 'desert', 'camel': 'desert', 'lion': 'savanna', 'elephant': 'savanna', 'giraffe': 'savanna', 'zebra': 'savanna', 'leopard': 'savanna', 'rhinoceros': 'savanna', 'tiger': 'jungle', 'monkey': 'jungle', 'gorilla': 'jungle', 'orangutan': 'jungle', 'parrot': 'jungle', 'sloth': 'jungle', 'snake': 'jungle', 'frog': 'lake', 'duck': 'lake', 'swan': 'lake', 'goose': 'lake', 'cow': 'farm', 'pig': 'farm', 'sheep': 'farm', 'chicken': 'farm', 'rooster': 'farm', 'chick': 'farm', 'horse': 'farm', 'goat': 'farm', 'tractor': 'farm', 'farmer': 'farm', 'turkey': 'farm', 'donkey': 'farm', 'seal': 'snow', 'crab': 'beach', 'seashell': 'beach', 'palm tree': 'beach', 'beach umbrella': 'beach', 'astronaut': 'moon', 'toilet': 'bathroom', 'bathtub': 'bathroom', 'toothbrush': 'bathroom', 'soap': 'bathroom', 'deer': 'forest', 'fox': 'forest', 'bear': 'forest', 'wolf': 'forest', 'owl': 'forest', 'squirrel': 'forest', 'hedgehog': 'forest', 'mushroom': 'forest', 'raccoon': 'forest', 'moose': 'forest', 'bison': 'meadow', 'kangaroo': 'desert', 'scorpion': 'desert', 'lizard': 'desert', 'bed': 'bedroom', 'teddy bear': 'bedroom', 'couch': 'living room', 'television': 'living room', 'surfer': 'ocean', 'whale': 'ocean', 'dolphin': 'ocean', 'cook': 'kitchen', 'tennis ball': 'stadium', 'golfer': 'meadow', 'microphone': 'stage', 'maple leaf': 'autumn', 'pumpkin': 'autumn', 'log': 'forest', 'campfire': 'forest', 'tent': 'forest', 'panda': 'jungle', 'koala': 'forest', 'christmas tree': 'snow', 'fountain': 'park', 'lobster': 'beach', 'santa claus': 'snow', 'stop sign': 'road', 'traffic light': 'street', 'bus stop': 'street', 'flamingo': 'lake', 'turtle': 'beach', 'dinosaur': 'jungle', 't-rex': 'jungle', 'hippopotamus': 'river', 'crocodile': 'river', 'beaver': 'river', 'ferris wheel': 'park', 'boat': 'lake', 'canoe': 'lake', 'person riding a horse': 'meadow', 'robot': 'city', 'castle': 'mountains', 'lotus': 'lake'}


# in these sets the picture is a bare head (or a bust), although the other sets show the whole animal
SKIP = {('twemoji', e) for e in ('🦓', '🦌', '🦍', '🦏', '🦧', '🦅', '🦔')}
WHOLE = {('noto', 'raccoon'), ('twemoji', 'chicken')}          # and the other way round


# --------------------------------------------------------------------------- atlas
class Atlas:
    def __init__(s, path):
        j = json.load(open(os.path.join(path, 'index.json'))); s.size = j['size']; s.styles = j['styles']
        s.mm = np.memmap(os.path.join(path, 'atlas.bin'), np.uint8, 'r'); s.cache = {}; s.dom = {}

    def has(s, style, e): return e in s.styles[style] and (style, e) not in SKIP

    def get(s, style, e):
        r = s.styles.get(style, {}).get(e)
        if not r: return None
        o, h, w, fl, fr = r
        return Image.frombuffer('RGBA', (w, h), bytes(s.mm[o:o + h * w * 4]), 'raw', 'RGBA', 0, 1), fl / w, fr / w

    def scaled(s, style, e, W, H, im):
        k = (style, e, W, H); r = s.cache.get(k)
        if r is None:
            r = im.resize((W, H), Image.LANCZOS if W < im.width else Image.BICUBIC, reducing_gap=3.0 if W < im.width else None)
            if len(s.cache) < 4000: s.cache[k] = r
        return r


def rgb2hsv(a):
    mx = a.max(-1); mn = a.min(-1); d = mx - mn; r, g, b = a[..., 0], a[..., 1], a[..., 2]; dd = np.where(d == 0, 1, d)
    h = np.where(mx == r, ((g - b) / dd) % 6, np.where(mx == g, (b - r) / dd + 2, (r - g) / dd + 4)) / 6
    return h, np.where(mx == 0, 0, d / np.where(mx == 0, 1, mx)), mx


def hsv2rgb(h, s, v):
    i = np.floor(h * 6); f = h * 6 - i; p, q, t = v * (1 - s), v * (1 - f * s), v * (1 - (1 - f) * s); i = i.astype(int) % 6
    return np.stack([np.choose(i, [v, q, p, p, t, v]), np.choose(i, [t, v, v, q, p, p]), np.choose(i, [p, p, t, v, v, q])], -1)


def dominant(a):
    """main hue of a sprite, its spread and how much of it is coloured at all"""
    h, s, v = rgb2hsv(a[..., :3]); w = a[..., 3] * s * (v > .2) * (s > .25)
    hist, _ = np.histogram(h, 36, (0, 1), weights=w); sm = hist + np.roll(hist, 1) + np.roll(hist, -1); k = int(sm.argmax())
    return (k + .5) / 36, sm[k] / max(hist.sum(), 1e-6), w.sum() / max(a[..., 3].sum(), 1e-6)


def recolour(a, color, hue):
    H, S, V = COLORS[color]; h, s, v = rgb2hsv(a[..., :3]); d = np.abs(h - hue); d = np.minimum(d, 1 - d)
    m = (smooth(.125, .075, d) * smooth(.12, .3, s))[..., None].astype(F)
    sel = m[..., 0] > .5
    ref_s = np.percentile(s[sel], 75) if sel.any() else 1; ref_v = np.percentile(v[sel], 75) if sel.any() else 1
    ns = np.clip(s / max(ref_s, .05) * S, 0, 1); nv = np.clip(v / max(ref_v, .05) * V, 0, 1)
    if color == 'black': nv = np.clip(v / ref_v * .26, 0, .6)
    rgb = hsv2rgb(np.full_like(h, H), ns, nv); out = a.copy(); out[..., :3] = lerp(a[..., :3], rgb.astype(F), m); return out


# --------------------------------------------------------------------------- words
IRR = {'man': 'men', 'woman': 'women', 'person': 'people', 'human': 'humans', 'someone': 'people', 'mouse': 'mice', 'sheep': 'sheep', 'deer': 'deer', 'moose': 'moose', 'bison': 'bison', 'fish': 'fish', 'ox': 'oxen', 'goose': 'geese', 'leaf': 'leaves', 'knife': 'knives', 'loaf': 'loaves', 'wolf': 'wolves', 'scarf': 'scarves', 'policeman': 'policemen', 'fireman': 'firemen', 'gentleman': 'gentlemen', 'snowman': 'snowmen', 'fisherman': 'fishermen', 'spaceman': 'spacemen', 'dice': 'dice', 'die': 'dice', 'shrimp': 'shrimp', 'squid': 'squid', 'buffalo': 'buffaloes', 'cattle': 'cattle', 'trout': 'trout', 'aircraft': 'aircraft', 'elk': 'elk', 'reindeer': 'reindeer', 'potato': 'potatoes', 'tomato': 'tomatoes', 'mango': 'mangoes', 'clownfish': 'clownfish', 'pufferfish': 'pufferfish', 'angelfish': 'angelfish', 'calf': 'calves', 'cactus': 'cacti', 'headphones': 'headphones', 'prince': 'princes', 'octopus': 'octopuses', 'platypus': 'platypuses', 'bus': 'buses', 'rhinoceros': 'rhinoceroses', 'hippopotamus': 'hippopotamuses', 'walrus': 'walruses', 'hibiscus': 'hibiscuses'}
MASS = {'bread', 'french bread', 'cheese', 'meat', 'fried chicken', 'bacon', 'sushi', 'popcorn', 'chocolate', 'honey', 'milk', 'coffee', 'wine', 'red wine', 'champagne', 'juice', 'beer', 'soda', 'rice', 'ramen', 'spaghetti', 'pasta', 'stew', 'luggage', 'corn', 'broccoli', 'lettuce', 'garlic', 'cabbage', 'wood', 'mail', 'yarn', 'soap', 'cattle', 'toilet paper', 'ice cream', 'fire', 'french toast', 'corn on the cob', 'mulled wine', 'horse racing', 'shade'}
PLUR = {'noodles', 'bananas', 'books', 'flowers', 'pancakes', 'pants', 'trousers', 'eyeglasses', 'shades', 'headphones', 'jeans', 'blue jeans', 'gloves', 'socks', 'skis', 'glasses', 'sunglasses', 'scissors', 'grapes', 'cherries', 'blueberries', 'fries', 'french fries', 'strips of bacon', 'shopping bags'}
NUM = {2: ['two', 'two', 'two', '2', 'a pair of', 'a couple of'], 3: ['three', 'three', '3'], 4: ['four', '4'], 5: ['five', '5'], 6: ['six', '6']}


def plural(n):
    m = re.match(r'^(.*?)( of | with | on | riding | in | playing | skiing| swimming| surfing| running| dancing| snowboarding)(.*)$', n)
    head, tail = (m.group(1), m.group(2) + m.group(3)) if m else (n, '')
    if tail.startswith((' riding a bicycle',)): tail = ' riding bicycles'
    elif tail.startswith(' on a '): tail = ' on ' + plural(tail[6:])
    ws = head.split(' '); w = ws[-1]
    if w in IRR: w2 = IRR[w]
    elif re.search(r'(s|x|ch|sh)$', w): w2 = w + 'es'
    elif re.search(r'[^aeiou]y$', w): w2 = w[:-1] + 'ies'
    else: w2 = w + 's'
    return ' '.join(ws[:-1] + [w2]) + tail


def art(p): return ('an ' if re.match(r'^([aeiou]|hour|suv)', p) and not re.match(r'^(one|uni|eu|ufo|use)', p) else 'a ') + p


# --------------------------------------------------------------------------- generator
class SceneGen:
    STYLES = {'fluent3d': .40, 'noto': .34, 'twemoji': .14, 'fluentflat': .12}
    STYLE_WORDS = {'fluent3d': ['a 3d render of', 'a 3d picture of'], 'noto': ['a cartoon of', 'an illustration of'], 'twemoji': ['a flat illustration of', 'a flat drawing of'], 'fluentflat': ['a flat illustration of', 'a flat drawing of']}

    def __init__(s, atlas=None, size=128, seed=0, styles=None, nouns=None, bank=None, split=None, _atlas=None):
        s.split = split                                       # None, 'train' (without the held-out pairs) or 'test' (only them)
        s.atlas = _atlas or Atlas(atlas or os.path.join(HERE, 'atlas')); s.R = size; s.seed = seed; s.styles = styles or s.STYLES
        s.nouns = nouns or read_nouns(os.path.join(HERE, 'nouns.txt')); s.by = {n['noun']: n for n in s.nouns}; s.bank = bank
        s.cats = {}
        for n in s.nouns: s.cats.setdefault(n['cat'], []).append(n)
        wp = os.path.join(HERE, 'weights.json'); W = json.load(open(wp)) if os.path.exists(wp) else {}
        s.catf = {'object': .75, 'food': .85, 'cloth': .9, 'land': 1.3, 'head': 1.4, 'bird': 1.2, 'flyer': 1.3, 'sea': 1.3, 'person': 1.1, 'bust': 1.1, 'road': 1.1, 'ship': 1.4, 'building': 1.0, 'plant': 1.4, 'sky': 1.4, 'space': 1.3, 'kite': 1.4}
        s.nw = {n['noun']: W.get(n['noun'], 1.5) * s.catf.get(n['cat'], 1) for n in s.nouns}; s._pool = {}

    # ---- what is in the picture
    def _noun(s, r, cats=None):
        k = tuple(cats) if cats else None
        if k not in s._pool: L = [n for n in s.nouns if not k or n['cat'] in k]; w = np.array([s.nw[n['noun']] for n in L]); s._pool[k] = (L, np.cumsum(w / w.sum()))
        L, cw = s._pool[k]; return L[min(int(np.searchsorted(cw, r.random())), len(L) - 1)]

    def _bg(self, r, n):
        if n['noun'] in SPECIAL_BG and r.random() < (1 if n['noun'] in ('skier', 'snowboarder') else .38): return SPECIAL_BG[n['noun']]
        if r.random() < .08 and n['cat'] not in ('sea', 'ship', 'personw', 'sky', 'rail'): return GROUND[int(r.integers(len(GROUND)))]
        d = SUIT[n['cat']]; ks = list(d); w = np.array([d[k] for k in ks], float)
        if 'w' in n['flags'] and n['cat'] == 'bird' and r.random() < .4: return 'lake'
        return ks[int(r.choice(len(ks), p=w / w.sum()))]

    def _style(s, r, ems):
        ok = [k for k in s.styles if all(any(s.atlas.has(k, e) for e in es) for es in ems)] or ['noto']
        w = np.array([s.styles.get(k, 1) for k in ok]); return ok[int(r.choice(len(ok), p=w / w.sum()))]

    @staticmethod
    def held_out(noun, bg): return zlib.crc32(('%s|%s' % (noun, bg)).encode()) % 40 == 0 and bg != 'plain'

    def plan(s, index):
        for k in range(400):
            sp = s._plan(index, k); h = any(s.held_out(o['noun'], sp['bg']) for o in sp['objs'])
            if s.split is None or (s.split == 'test') == h: return sp
        return sp

    def _plan(s, index, attempt=0):
        r = np.random.default_rng([s.seed, index] + ([attempt] if attempt else [])); q = r.random(); sp = dict(index=index, objs=[], rel=None)
        if q < .07:                                           # scenery only
            bgs = [k for k in BG if PLACE_ONLY[k]]; sp['bg'] = bgs[int(r.integers(len(bgs)))]; sp['style'] = s._style(r, [])
        else:
            n = s._noun(r); sp['bg'] = s._bg(r, n); o = dict(noun=n['noun'], count=1, size=None, color=None, pos=None)
            two = r.random() < .17
            if not two:
                k = r.random(); solid = n['cat'] not in ('building', 'sky') or r.random() < .25
                if k > .70 and solid and 'p' not in n['flags'] and n['noun'] not in MASS: o['count'] = 2 if k < .83 else 3 if k < .94 else int(r.integers(4, 7))
                if r.random() < .2: o['size'] = 'small' if r.random() < .5 else 'big'
                if r.random() < .16 and o['count'] == 1: o['pos'] = ['left', 'right', 'center'][int(r.integers(3))]
            if 't' in n['flags'] and r.random() < .42: o['color'] = list(COLORS)[int(r.integers(len(COLORS)))]
            sp['objs'].append(o)
            if two: s._second(r, sp, n)
            sp['style'] = s._style(r, [s.by[x['noun']]['emoji'] for x in sp['objs']])
        ts = BG[sp['bg']][1]
        for o in sp['objs']:
            f = FORCE_TIME.get(o['noun'])
            if f:
                ok = [t for t in f if t in ts]
                if ok: ts = ok
        sp['time'] = ts[int(r.integers(len(ts)))]
        sp['color'] = list(PLAIN)[int(r.choice(len(PLAIN), p=np.array([6, 1.5, 1.5, 1, 1, 1.2, 1.2, 2, 1.5, 1, 1, .6]) / 19.5))] if sp['bg'] == 'plain' else None
        sp['seed'] = int(r.integers(2 ** 31)); sp['cseed'] = int(r.integers(2 ** 31)); return sp

    def _second(s, r, sp, n):
        kind = BG[sp['bg']][2]; a = sp['objs'][0]
        pool = {'surface': ['food', 'object'], 'under': ['sea'], 'sky': ['air', 'flyer', 'space'] if sp['bg'] == 'space' else ['air', 'flyer', 'kite'], 'water': ['ship', 'sea', 'personw']}.get(kind)
        if pool is None:
            pool = {'plain': [n['cat'], 'food', 'object', 'land']}.get(kind, ['land', 'head', 'bird', 'person', 'toy', 'ball', 'road', 'plant', 'furn', 'building', 'flyer', 'prop'])
        if n['cat'] in ('land', 'person', 'head') and r.random() < .3 and kind == 'ground': pool = ['ball', 'toy', 'land']
        if not any(x['cat'] in pool for x in s.nouns): return
        for _ in range(20):
            m = s._noun(r, pool)
            if m['noun'] != n['noun'] and 'p' not in m['flags'] and m['noun'] not in MASS: break
        if m['noun'] == n['noun'] or not any(any(s.atlas.has(k, e) for e in n['emoji']) and any(s.atlas.has(k, e) for e in m['emoji']) for k in s.styles): return
        b = dict(noun=m['noun'], count=1, size=None, color=None, pos=None)
        if 't' in m['flags'] and r.random() < .35: b['color'] = list(COLORS)[int(r.integers(len(COLORS)))]
        rels = ['and', 'and', 'next to', 'left of', 'right of']
        if kind in ('ground', 'floor', 'lake', 'city'):
            if m['cat'] in ('building',) or m['noun'] in ('couch', 'tree', 'pine tree', 'palm tree', 'christmas tree'):
                rels = ['in front of'] * 3 + ['and', 'next to']
                if m['cat'] == 'plant' and n['cat'] in ('land', 'head', 'person', 'toy', 'ball', 'furn', 'bust'): rels += ['under'] * 3
            if m['cat'] == 'flyer' or m['cat'] == 'air': rels = ['under', 'and']
        if n['cat'] in ('flyer', 'air', 'kite', 'sky') and kind not in ('sky', 'under', 'plain', 'surface') and m['cat'] not in ('flyer', 'air', 'kite'): rels = ['above', 'above', 'and']
        if n['cat'] == 'bust' or m['cat'] == 'bust': rels = ['and', 'next to']
        if n['cat'] == 'building' and m['cat'] not in ('building', 'plant', 'flyer', 'air'): rels = ['behind', 'and', 'next to']
        sp['objs'].append(b); sp['rel'] = rels[int(r.integers(len(rels)))]

    # ---- wording
    def _np(s, r, o, first=True):
        n = s.by[o['noun']]; w = n['noun']
        if n['syn'] and r.random() < .33: w = n['syn'][int(r.integers(len(n['syn'])))]
        cw = {'gray': ['gray', 'grey'], 'purple': ['purple', 'violet']}.get(o['color'], [o['color']])
        if o['color'] and re.match(r'^(red|yellow|green|white|black|blue|pink|brown|golden)\b', w): w = n['noun'] if not re.match(r'^(red|green|black|white)\b', n['noun']) else w
        adj = []
        if o['size'] and not re.search(r'\b(small|big|little|tiny|baby|young|tall|mini)', w): adj.append({'small': ['small', 'tiny', 'little'], 'big': ['big', 'large', 'huge', 'giant']}[o['size']][int(r.integers(3))])
        if o['color']: adj.append(cw[int(r.integers(len(cw)))])
        base = w
        m = re.match(r'^(cup of|glass of|bowl of|pot of|plate of|jar of|piece of|slice of|bottle of|ball of|bar of|bunch of|pair of|stack of|box of|loaf of|roll of|bouquet of)', base)
        A = ' '.join(adj + [base])
        c = o['count']
        if c > 1:
            if w in MASS: base = n['noun']
            if base in PLUR: pl = base
            else: pl = plural(base)
            pl = ' '.join(adj + [pl]); d = NUM[c][int(r.integers(len(NUM[c])))] if c <= 3 or r.random() < .5 else ['several', 'many', 'a group of', 'a bunch of', 'some'][int(r.integers(5))]
            return d + ' ' + pl
        if base in PLUR: return (['some ', '', ''][int(r.integers(3))] + A) if not m else A
        if base in MASS: return ['some ', ''][int(r.integers(2))] + A
        if base in ('sun', 'moon', 'full moon', 'earth', 'planet earth', 'santa claus', 'santa', 'father christmas', 'tokyo tower', 'eiffel tower', 'statue of liberty') and not adj:
            return base if base in ('santa claus', 'santa', 'father christmas', 'planet earth') else 'the ' + base
        if base == 'someone': return base
        return art(A)

    VERB = {'land': ['standing', 'standing'], 'bird': ['standing'], 'person': [''], 'road': ['parked', 'driving'], 'ship': ['floating', 'sailing'], 'air': ['flying'], 'flyer': ['flying'], 'kite': ['flying', 'floating'], 'sea': ['swimming'], 'food': ['lying', 'placed', 'sitting'], 'object': ['lying', 'placed'], 'space': ['flying'], 'furn': ['standing'], 'building': ['standing'], 'head': [], 'rail': []}

    def caption(s, sp, k=0):
        r = np.random.default_rng([sp['cseed'], k]); kind = BG[sp['bg']][2]; out = ''
        place = BG[sp['bg']][3]; pl = place[int(r.integers(len(place)))] if place else None
        if sp['bg'] == 'plain': pl = 'on %s background' % art(sp['color']) if r.random() < .75 else 'in front of %s wall' % art(sp['color'])
        t = sp['time']; tw = TIME_WORDS[t][int(r.integers(len(TIME_WORDS[t])))] if sp['bg'] not in ('plain', 'space', 'moon', 'stage', 'table', 'tablecloth', 'kitchen', 'bathroom') and not (sp['bg'] in ('living room', 'bedroom') and t != 'night') else ''
        if r.random() > (.16 if t == 'day' else .78): tw = ''
        if t == 'snowfall' and sp['bg'] != 'snow': tw = tw
        if not sp['objs']:
            P = PLACE_ONLY[sp['bg']]; out = P[int(r.integers(len(P)))]
            if tw: out += ' ' + tw
        else:
            a = sp['objs'][0]; n = s.by[a['noun']]; A = s._np(r, a); verb = ''
            if len(sp['objs']) == 2:
                B = s._np(r, sp['objs'][1]); rel = sp['rel']
                out = {'and': '%s and %s', 'next to': '%s next to %s', 'left of': '%s to the left of %s', 'right of': '%s to the right of %s', 'in front of': '%s in front of %s', 'behind': '%s behind %s', 'under': '%s under %s', 'above': '%s above %s'}[rel] % (A, B)
            else:
                out = A
                air = s._mode(sp, n) == 'air'; vb = s.VERB.get(n['cat'], [])
                if vb and r.random() < .22 and sp['bg'] != 'plain' and 'h' not in n['flags'] and not re.search(r'ing\b', A):
                    v = vb[int(r.integers(len(vb)))]
                    if v == 'driving' and sp['bg'] not in ('street', 'road', 'desert', 'snow', 'beach', 'mountains'): v = 'parked'
                    if n['cat'] in ('flyer', 'air', 'kite', 'space', 'ship', 'sea') and not (air or s._mode(sp, n) in ('water', 'float')): v = ''
                    if n['cat'] == 'bird' and s._mode(sp, n) == 'water': v = 'swimming'
                    verb = (' ' + v) if v else ''
                if air and sp['bg'] not in ('sky', 'space') and kind != 'plain' and n['cat'] != 'sky' and pl and r.random() < .7:
                    pl = {'beach': ['over a beach', 'above the beach'], 'ocean': ['over the ocean', 'above the sea'], 'mountains': ['over the mountains', 'above the mountains'], 'city': ['over a city', 'above the city'], 'street': ['over a street', 'above the street'], 'forest': ['over a forest', 'in a forest'], 'desert': ['over the desert', 'above the desert'], 'meadow': ['over a green field', 'above a meadow'], 'snow': ['over a snowy landscape', 'above the snow'], 'road': ['over a road'], 'lake': ['over a lake', 'above a lake']}.get(sp['bg'], [pl])[0 if r.random() < .5 else -1]
                if n['cat'] == 'sky' and sp['bg'] not in ('sky', 'plain'):
                    pl = {'beach': 'over a beach', 'ocean': 'over the ocean', 'mountains': 'over the mountains', 'city': 'over a city', 'desert': 'over the desert', 'meadow': 'over a meadow', 'snow': 'over a snowy field', 'lake': 'over a lake', 'road': 'over a road', 'forest': 'over a forest'}.get(sp['bg'], 'in the sky')
            if kind == 'lake' and pl:
                inw = s._mode(sp, n) == 'water' or (len(sp['objs']) == 1 and s._mode(sp, n) == 'water')
                w = {'lake': (['on a lake', 'on the lake', 'in a lake', 'on calm water'], ['by a lake', 'near a lake', 'at the lake', 'on the shore of a lake']), 'river': (['on a river', 'in a river', 'on the river'], ['by a river', 'near a river', 'on a river bank'])}[sp['bg']][0 if inw else 1]
                if s._mode(sp, n) != 'air': pl = w[int(r.integers(len(w)))]
            x = r.random()
            if pl and (x > .14 or sp['bg'] == 'plain' and x > .3): out += verb + ' ' + pl
            if a['pos'] and r.random() < .85: out += {'left': [' on the left', ' on the left side'], 'right': [' on the right', ' on the right side'], 'center': [' in the center', ' in the middle']}[a['pos']][int(r.integers(2))]
            if tw: out += ' ' + tw
        x = r.random()
        if x < .10: out = ['a picture of ', 'an image of ', 'a drawing of '][int(r.integers(3))] + out
        elif x < .17: w = s.STYLE_WORDS[sp['style']]; out = w[int(r.integers(len(w)))] + ' ' + out
        elif x < .20 and sp['objs']: out = ('there are ' if sp['objs'][0]['count'] > 1 or re.match(r'some \w+s\b', out) else 'there is ') + out
        out = re.sub(r'\s+', ' ', out).strip()
        if r.random() < .12: out = out[0].upper() + out[1:] + '.'
        return out

    # ---- painting
    def _mode(s, sp, n):
        """how the object is placed in this background: ground, air, water, float or portrait"""
        kind = BG[sp['bg']][2]; c, f = n['cat'], n['flags']
        if kind == 'plain': return 'float'
        if kind in ('sky', 'under'): return 'air' if kind == 'sky' else ('bottom' if n['noun'] in ('crab', 'lobster', 'seashell', 'rock', 'anchor') else 'float')
        if c == 'sky' or c in ('air', 'flyer', 'kite', 'space') and kind in ('ground', 'water', 'lake', 'city', 'floor'): return 'air'
        if kind == 'water': return 'water'
        if kind in ('lake', 'city') and (c in ('ship', 'personw') or (c in ('bird', 'flower') and 'w' in f)): return 'water'
        if ('h' in f or c == 'bust') and (sp['style'], n['noun']) not in WHOLE and kind in ('ground', 'lake', 'city', 'floor') and n['noun'] not in ('skull',): return 'portrait'
        return 'ground'

    def render(s, sp):
        r = np.random.default_rng(sp['seed']); fn = BG[sp['bg']][0]
        if s.bank is not None and sp['bg'] != 'plain': g = s.bank.get(s, sp, r)
        else:
            g = Canvas(s.R, r, s.atlas, sp['style'], sp['time']); g.tex = s.recipe.texture; g.fx = None; g.nosun = any(o['noun'] in ('sun', 'moon', 'crescent moon', 'saturn') for o in sp['objs'])
            fn(g, sp['color']) if sp['bg'] == 'plain' else fn(g)
        meta = []
        objs = list(sp['objs'])
        if len(objs) == 2: lay = s._lay2(g, r, sp)
        elif objs: lay = s._lay1(g, r, sp)
        else: lay = []
        for L in sorted(lay, key=lambda d: (d['z'], d['base'])): meta.append(s._put(g, r, sp, L))
        img = g.img
        if sp['time'] == 'fog':
            m = (.30 + .35 * smooth(1.0, .3, g.Y)) * np.clip(1 + .25 * g.noise('soft'), .5, 1.3) * .8; img += (C(222, 225, 227) - img) * m[..., None]
        if sp['time'] == 'rain' and BG[sp['bg']][2] not in ('floor', 'surface', 'under'): s._rain(g, r)
        if getattr(g, 'fx', None) == 'snow': s._snow(g, r)
        out = (np.clip(img, 0, 1) * 255 + .5).astype(np.uint8)
        return out, meta

    def _rain(s, g, r):
        n = 130; R = g.R; L = .05; xs, ys = r.random(n) * 1.1 - .05, r.random(n) * 1.1 - .1; im = Image.new('L', (R * 2, R * 2)); d = ImageDraw.Draw(im)
        for x, y in zip(xs, ys):
            l = L * r.uniform(.6, 1.5); d.line([(x * 2 * R, y * 2 * R), ((x - l * .25) * 2 * R, (y + l) * 2 * R)], fill=int(r.uniform(70, 170)), width=max(1, R // 128))
        m = np.asarray(im.reduce(2), F) / 255; g.img += (C(220, 228, 238) - g.img) * (m * .75)[..., None]

    def _snow(s, g, r):
        for _ in range(int(r.integers(40, 90))):
            q = r.uniform(.004, .011); g.ellipse(float(r.random()), float(r.random()), q, q, C(255, 255, 255), float(r.uniform(.6, 1)), q * .8)

    def _emoji(s, r, sp, n):
        c = [e for e in n['emoji'] if s.atlas.has(sp['style'], e)] or [e for e in n['emoji'] if s.atlas.has('noto', e)]
        e = c[int(r.integers(len(c)))]
        if n['cat'] in ('person', 'personw', 'bust', 'skiing'):
            tones = ['', '1f3fb', '1f3fc', '1f3fd', '1f3fe', '1f3ff']; t = tones[int(r.choice(6, p=[.10, .24, .2, .18, .15, .13]))]
            if t:
                b = e.replace('\ufe0f', '', 1) if len(e) > 1 and e[1] == '\ufe0f' else e; e2 = b[0] + chr(int(t, 16)) + b[1:]
                if s.atlas.has(sp['style'], e2): e = e2
        return e

    BASE = {'S': (.30, .44), 'M': (.38, .54), 'L': (.44, .62), 'X': (.52, .74)}

    def _lay1(s, g, r, sp):
        o = sp['objs'][0]; n = s.by[o['noun']]; mode = s._mode(sp, n); c = o['count']; kind = BG[sp['bg']][2]
        lo, hi = s.BASE[n['size']]
        if kind in ('plain', 'surface'): lo, hi = max(lo, .42), max(hi, .62)
        if mode == 'portrait': lo, hi = .52, .68
        if n['cat'] == 'sky': lo, hi = (.16, .26) if n['noun'] not in ('rainbow', 'cloud') else (.24, .42)
        if o['size'] == 'small': lo, hi = .15, .24
        elif o['size'] == 'big': lo, hi = (.66, .84) if mode != 'portrait' else (.72, .85)
        k = {1: 1, 2: .74, 3: .58, 4: .44, 5: .40, 6: .36}[c]
        if o['size'] == 'small': k = min(1, k * 1.25)
        hh = r.uniform(lo, hi) * k; out = []
        if c == 1: xs = [{'left': r.uniform(.2, .28), 'right': r.uniform(.72, .8), 'center': .5, None: r.uniform(.34, .66)}[o['pos']]]
        else:
            cols = c if c <= 3 else (c + 1) // 2; xs = [(i + .5) / cols + r.normal(0, .02) for i in range(cols)]
            if c <= 3: xs = [.5 + (x - .5) * .96 for x in xs]
        e = s._emoji(r, sp, n); fl = r.random() < .5; same = r.random() < .75
        rows = 1 if c <= 3 else 2
        for i in range(c):
            row = i // len(xs) if rows == 2 else 0; x = xs[i % len(xs)] + (.06 * (row - .5) if rows == 2 else 0)
            h1 = hh * r.uniform(.92, 1.08) * (1.0 if rows == 1 else (.85 if row == 0 else 1.0))
            b = s._base(g, r, mode, h1, kind, row, rows, o)
            f1 = fl if same else r.random() < .5
            out.append(dict(o=o, n=n, e=e if same else s._emoji(r, sp, n), x=x, base=b, h=h1, flip=f1 and 'n' not in n['flags'], mode=mode, maxw=(.94 if c == 1 else .94 / len(xs)), z=row))
        return out

    def _base(s, g, r, mode, h, kind, row=0, rows=1, o=None):
        Z = g.zone
        if mode == 'portrait': return 1.0
        if mode == 'air':
            a, b = Z.get('float_') or Z['sky']
            if kind == 'sky': a, b = .2, .8
            c = r.uniform(a, b) if rows == 1 else (.3 + .36 * row + r.normal(0, .03)); c = min(max(c, h / 2 + .03), (.97 - h / 2) if kind == 'sky' else max(h / 2 + .03, .66 - h / 2)); return c + h / 2
        if mode == 'float':
            c = r.uniform(.42, .58) if rows == 1 else .3 + .4 * row; return min(max(c, h / 2 + .03), .97 - h / 2) + h / 2
        if mode == 'water' and Z.get('water'):
            a, b = Z['water']; y = r.uniform(a, b) if h < .4 else r.uniform(max(a, min(b, .6)), b); return max(y, min(h + .03, b))
        a, b = Z['ground'] or (.8, .93)
        if mode == 'bottom': return r.uniform(.88, .96)
        y = a + (b - a) * (r.uniform(.3, 1) if rows == 1 else (.05 + .9 * row)); return min(max(y, h + .02), .97)

    def _lay2(s, g, r, sp):
        a, b = sp['objs']; na, nb = s.by[a['noun']], s.by[b['noun']]; rel = sp['rel']; kind = BG[sp['bg']][2]; out = []
        def one(o, n, x, h, base=None, mode=None, z=1, maxw=.48):
            m = mode or s._mode(sp, n)
            if m == 'portrait' or m == 'ground' and 'h' in n['flags'] and s._mode(sp, n) == 'portrait': return dict(o=o, n=n, e=s._emoji(r, sp, n), x=x, base=1.0, h=r.uniform(.36, .44), flip=r.random() < .5 and 'n' not in n['flags'], mode='portrait', maxw=maxw, z=z + 1)
            return dict(o=o, n=n, e=s._emoji(r, sp, n), x=x, base=base if base is not None else s._base(g, r, m, h, kind), h=h, flip=r.random() < .5 and 'n' not in n['flags'], mode=m, maxw=maxw, z=z)
        def hgt(n, k): lo, hi = s.BASE[n['size']]; return r.uniform(lo, hi) * k
        if rel in ('in front of', 'under', 'behind', 'above'):
            big, sm = (b, a) if rel != 'behind' else (a, b); nbig, nsm = s.by[big['noun']], s.by[sm['noun']]
            if rel == 'in front of' or rel == 'behind':
                gz = g.zone['ground'] or (.8, .93); hb = hgt(nbig, 1.08); base = gz[0] + .02; base = max(base, hb + .02); hs = hgt(nsm, .72); x = r.uniform(.36, .64)
                out = [one(big, nbig, x, hb, base, 'ground', 0, .9), one(sm, nsm, np.clip(x + r.choice([-1, 1]) * r.uniform(.05, .2), .25, .75), min(hs, .42), r.uniform(.90, .96), 'ground', 1, .5)]
            elif rel == 'under' and nb['cat'] == 'plant':
                hb = r.uniform(.72, .86); base = max((g.zone['ground'] or (.8, .9))[0] + .04, hb + .02); x = r.uniform(.4, .6); out = [one(b, nb, x, hb, min(base, .93), 'ground', 0, .9), one(a, na, np.clip(x + r.choice([-1, 1]) * r.uniform(.1, .16), .2, .8), min(hgt(na, .62), .36), r.uniform(.92, .96), 'ground', 1, .4)]
            else:
                up, lo = (b, a) if rel == 'under' else (a, b); nu, nl = s.by[up['noun']], s.by[lo['noun']]; x = r.uniform(.38, .62); hl = min(hgt(nl, .78), .46); hu = min(hgt(nu, .66), .34)
                L = one(lo, nl, x, hl, None, None, 1, .6)
                if L['mode'] in ('air',): L['mode'] = 'ground'; L['base'] = .92
                L['base'] = max(L['base'], .86 if L['mode'] == 'ground' else L['base']); top = L['base'] - hl; cy = max(hu / 2 + .02, min(top - hu / 2 - .03, r.uniform(.14, .3)))
                out = [L, one(up, nu, np.clip(x + r.normal(0, .07), .25, .75), hu, cy + hu / 2, 'air', 2, .55)]
            return out
        ax, bx = (.27, .73) if (rel in ('left of',) or (rel in ('and', 'next to') and r.random() < .5)) else (.73, .27)
        k = .76; rr = {'S': 0, 'M': 1, 'L': 2, 'X': 3}; out = [one(a, na, ax + r.normal(0, .02), hgt(na, k)), one(b, nb, bx + r.normal(0, .02), hgt(nb, k))]
        return out

    def _put(s, g, r, sp, L):
        n, R = L['n'], g.R; t = s.atlas.get(sp['style'], L['e']); st = sp['style']
        if t is None: t = s.atlas.get('noto', L['e']); st = 'noto'
        im, fl, fr = t; asp = im.width / im.height; h = L['h']; w = h * asp
        if w > L['maxw']: h *= L['maxw'] / w; w = L['maxw']
        # long low things (a snake, a train) are measured by area rather than by height
        if asp > 1.35 and L['mode'] != 'portrait': k = min(1.25, L['maxw'] / w, math.sqrt(asp)); h *= k; w *= k
        base = L['base']; x = min(max(L['x'], w / 2 + .012), 1 - w / 2 - .012)
        if L['mode'] in ('air', 'float'): base -= (L['h'] - h) / 2
        bust = L['mode'] == 'portrait'
        body = None
        if bust:
            head_only = 'h' in n['flags'] and n['noun'] not in ('robot',) and not (n['noun'] in ('unicorn', 'moose', 'boar'))
            if 'h' in n['flags']: base = .98 - .16 * (h / .6) if n['noun'] != 'ghost' else .95
            body = head_only
        H = max(3, int(round(h * R))); W = max(3, int(round(w * R))); a = np.asarray(s.atlas.scaled(st, L['e'], W, H, im), F) / 255
        if L['flip']: a = a[:, ::-1]; fl, fr = 1 - fr, 1 - fl
        col = L['o']['color']
        if col:
            key = (st, L['e']); hue = s.atlas.dom.get(key)
            if hue is None: q = np.asarray(im.resize((48, 48)), F) / 255; hue = s.atlas.dom[key] = dominant(q)
            if hue[2] > .12: a = recolour(a, col, hue[0])
            else:                                            # a grey or white thing: stain it
                Hh, S, V = COLORS[col]; y = a[..., :3].max(-1); tgt = hsv2rgb(np.full_like(y, Hh), np.full_like(y, S), y * V).astype(F); a = a.copy(); a[..., :3] = lerp(a[..., :3], tgt, .85)
        amb = np.array(OBJ_AMB.get(sp['time'], (1, 1, 1)), F)
        if g.zone.get('plain') or BG[sp['bg']][2] in ('floor', 'surface'): amb = np.sqrt(np.array(ROOM_LIGHT.get(sp['time'], (1, 1, 1)), F)) if BG[sp['bg']][2] in ('floor', 'surface') else np.ones(3, F)
        if sp['bg'] in ('space', 'moon', 'stage', 'plain'): amb = np.ones(3, F)
        if sp['bg'] == 'underwater': amb = np.array((.82, .95, 1.0), F) * (.7 if sp['time'] == 'night' else 1)
        if n['cat'] == 'sky' or n['noun'] in ('campfire', 'candle', 'light bulb', 'ghost', 'balloon'): amb = np.sqrt(amb)
        x0 = int(round(x * R - W / 2)); y0 = int(round(base * R)) - H; Z = L['mode']
        # shadow
        if Z == 'ground' or Z == 'bottom':
            cx = (x0 + W * (fl + fr) / 2) / R; rx = max(W * (fr - fl) / 2 / R * 1.12, w * .26); ry = max(.010, rx * .20); d2 = ((g.X - cx) / (rx * 1.25)) ** 2 + ((g.Y - base + .004) / (ry * 1.5)) ** 2
            g.img *= (1 - .48 * np.exp(-d2 * 1.3))[..., None]
        elif Z == 'float' and g.zone.get('plain') and n['cat'] not in ('sky', 'air', 'flyer', 'kite'):
            cx = x; d2 = ((g.X - cx) / (w * .5)) ** 2 + ((g.Y - min(base + .03, .98)) / .03) ** 2; g.img *= (1 - .22 * np.exp(-d2 * 1.2))[..., None]
        elif Z == 'water': d2 = ((g.X - x) / (w * .62)) ** 2 + ((g.Y - base) / .03) ** 2; g.img *= (1 - .30 * np.exp(-d2 * 1.2))[..., None]
        if bust and 'h' in n['flags'] and body: s._body(g, r, n, a, x, base, h, w, amb)
        al = a[..., 3].copy()
        if Z == 'water' and n['noun'] not in ('surfer', 'swimmer'):
            f = np.linspace(1, 0, H)[:, None]; al *= 1 - .8 * smooth(.10, .0, f + .02 * np.sin(np.arange(W) / max(2, R / 40))[None])
        X0, Y0, X1, Y1 = max(x0, 0), max(y0, 0), min(x0 + W, R), min(y0 + H, R)
        if X1 > X0 and Y1 > Y0:
            sl = (slice(Y0 - y0, Y1 - y0), slice(X0 - x0, X1 - x0)); g.blend((slice(Y0, Y1), slice(X0, X1)), al[sl], np.clip(a[sl][..., :3] * amb, 0, 1))
        return dict(noun=n['noun'], emoji=L['e'], color=col, box=[round(v, 3) for v in (x0 / R, y0 / R, (x0 + W) / R, (y0 + H) / R)], mode=Z)

    def _body(s, g, r, n, a, x, base, h, w, amb):
        """shoulders under a head-only sprite, so that a portrait does not float"""
        k, q = a.shape[:2]; ring = a[int(k * .4):int(k * .85)]; al = ring[..., 3] > .8; m = al & ~np.roll(al, max(1, q // 7), 1) | al & ~np.roll(al, -max(1, q // 7), 1)
        if n['cat'] == 'bust': c = g.col(g.pick(C(210, 60, 60), C(60, 110, 200), C(80, 160, 90), C(240, 190, 60), C(130, 90, 180), C(240, 240, 240), C(60, 64, 80)), .03)
        else: px = ring[..., :3][m]; c = np.median(px, 0) if len(px) else C(150, 120, 90)
        c = np.clip(c * amb, 0, 1); top = base - h * .22; hw = w * (.46 if n['cat'] == 'bust' else .5); hh = 1.12 - top; R = g.R
        wv = g.win(x - hw * 1.1, top, x + hw * 1.1, 1)
        if not wv: return
        dx = (g.X[:, wv[1]] - x) / hw; dy = (g.Y[wv[0]] - top) / hh; t = np.clip(dy, 0, 1); half = np.sqrt(np.clip(1 - (1 - np.clip(t * 2.2, 0, 1)) ** 2, 0, 1)) * .98
        d = (half - np.abs(dx)) * hw * R; sh = 1.04 - .22 * np.abs(dx) ** 2 - .12 * t; g.blend(wv, np.clip(d + .5, 0, 1) * (g.Y[wv[0]] > top), np.clip(c * sh[..., None], 0, 1))
        # a soft shadow of the chin
        d2 = (dx / .75) ** 2 + ((g.Y[wv[0]] - base) / (.05)) ** 2; v = g.img[wv]; v *= (1 - .25 * np.exp(-d2) * np.clip(d + .5, 0, 1))[..., None]

    def sample(s, index, captions=1):
        sp = s.plan(index); img, meta = s.render(sp); c = [s.caption(sp, k) for k in range(captions)]
        return img, (c[0] if captions == 1 else c), dict(bg=sp['bg'], time=sp['time'], style=sp['style'], objs=sp['objs'], rel=sp['rel'], boxes=meta, plain=sp['color'])


class BgBank:
    """backgrounds painted once: the compositor then only flips, jitters and shifts them"""

    def __init__(s, path):
        j = json.load(open(path + '.json')); s.R, s.per, s.items = j['R'], j['per'], j['items']
        s.mm = np.memmap(path + '.bin', np.uint8, 'r').reshape(-1, s.R, s.R, 3)

    @staticmethod
    def build(gen, path, per=4):
        items = {}; out = open(path + '.bin', 'wb'); k = 0
        for bg, (fn, times, kind, _) in BG.items():
            if bg == 'plain': continue
            if bg not in gen.places: continue
            for t in dict.fromkeys(gen.times(bg)):
                for st in gen.styles:
                    for v in range(per):
                        for nosun in ((False, True) if v == 0 else (False,)):
                            g = Canvas(gen.R, np.random.default_rng([k, 77]), gen.atlas, st, t); g.tex = gen.recipe.texture; g.fx = None; g.nosun = nosun; fn(g)
                            out.write((np.clip(g.img, 0, 1) * 255 + .5).astype(np.uint8).tobytes())
                            items.setdefault('%s|%s|%s|%d' % (bg, t, st, nosun), []).append([k, g.zone, float(g.horizon), [float(x) for x in g.amb], [float(x) for x in g.hz], g.fx, g.time]); k += 1
        json.dump(dict(R=gen.R, per=per, items=items), open(path + '.json', 'w')); return k

    def get(s, gen, sp, r):
        nosun = any(o['noun'] in ('sun', 'moon', 'crescent moon', 'saturn') for o in sp['objs'])
        L = s.items['%s|%s|%s|%d' % (sp['bg'], sp['time'], sp['style'], nosun)]; k, zone, hor, amb, hz, fx, t = L[int(r.integers(len(L)))]
        g = Canvas(s.R, r, gen.atlas, sp['style'], sp['time']); g.tex = gen.recipe.texture; a = s.mm[k]
        if r.random() < .5: a = a[:, ::-1]
        g.img = a * (r.uniform(.96, 1.04, 3) / 255).astype(F); g.zone = dict(zone); g.horizon = hor; g.amb = np.array(amb, F); g.hz = np.array(hz, F); g.fx = fx; g.time = t
        return g


def read_nouns(path):
    out = []
    for line in open(path, encoding='utf8'):
        line = line.rstrip('\n')
        if not line.strip() or line.startswith('#'): continue
        p = line.split('|'); out.append(dict(noun=p[0], emoji=p[1].split(), syn=[x for x in p[2].split(',') if x], cat=p[3], size=p[4], flags=p[5] if len(p) > 5 else ''))
    return out


def sheet(g, idx, path, cols=8, pad=4):
    import textwrap
    from PIL import ImageFont
    try: font = ImageFont.load_default(size=11 if g.R <= 128 else 13)
    except Exception: font = ImageFont.load_default()
    R = g.R; th = 42 if R <= 128 else 36; rows = (len(idx) + cols - 1) // cols; im = Image.new('RGB', (cols * (R + pad), rows * (R + th)), 'white'); d = ImageDraw.Draw(im)
    for i, k in enumerate(idx):
        a, c, m = g.sample(k); x, y = i % cols * (R + pad), i // cols * (R + th); im.paste(Image.fromarray(a), (x, y))
        d.multiline_text((x + 1, y + R + 1), '\n'.join(textwrap.wrap(c, int(R / 5.6) if R <= 128 else int(R / 6.6))[:3]), fill=(0, 0, 0), font=font, spacing=0)
    im.save(path)


def bgsheet(R, path, style='fluent3d', times=('day', 'sunset', 'night')):
    at = Atlas(os.path.join(HERE, 'atlas')); names = list(BG); im = Image.new('RGB', (8 * (R + 2), ((len(names) * len(times) + 7) // 8) * (R + 12)), 'white'); d = ImageDraw.Draw(im); i = 0
    for nme in names:
        for t in times:
            g = Canvas(R, np.random.default_rng([i, 5]), at, style, t); g.fx = None; BG[nme][0](g)
            x, y = i % 8 * (R + 2), i // 8 * (R + 12); im.paste(Image.fromarray((np.clip(g.img, 0, 1) * 255).astype(np.uint8)), (x, y)); d.text((x + 1, y + R), nme + ' ' + t, fill=(0, 0, 0)); i += 1
    im.save(path)


if __name__ == '__main__':
    import sys, time
    what = sys.argv[1] if len(sys.argv) > 1 else 'sheet'; R = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    if what == 'bg': bgsheet(R, os.path.join(HERE, 'bg_%d.png' % R))
    elif what == 'sheet':
        g = SceneGen(size=R); o = int(sys.argv[3]) if len(sys.argv) > 3 else 0; n = int(sys.argv[4]) if len(sys.argv) > 4 else 48
        sheet(g, range(o, o + n), os.path.join(HERE, 'sheet_%d.png' % R))
    elif what == 'time':
        g = SceneGen(size=R); [g.sample(i) for i in range(5)]; t = time.time(); n = int(sys.argv[3]) if len(sys.argv) > 3 else 200
        for i in range(n): g.sample(10000 + i)
        print('%d px: %.1f images/s on one core' % (R, n / (time.time() - t)))
    elif what == 'bank':
        g = SceneGen(size=R); t = time.time(); per = int(sys.argv[3]) if len(sys.argv) > 3 else 4; k = BgBank.build(g, os.path.join(HERE, 'atlas', 'bank%d' % R), per); print(k, 'backgrounds in %.1f s' % (time.time() - t))
        g.bank = BgBank(os.path.join(HERE, 'atlas', 'bank%d' % R)); [g.sample(i) for i in range(50)]; t = time.time(); n = 1000
        for i in range(n): g.sample(10000 + i)
        print('%d px with cached backgrounds: %.1f images/s on one core' % (R, n / (time.time() - t)))
    elif what == 'caps':
        g = SceneGen(size=R)
        for i in range(80): print(g.caption(g.plan(i)))
