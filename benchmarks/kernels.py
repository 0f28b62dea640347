"""Time, memory and error of the kernels, beside their peers, in one run.

    python benchmarks/kernels.py            # everything, a few minutes on one CPU core; draws kernels.png
    python benchmarks/kernels.py --quick    # small sizes, seconds
    python benchmarks/kernels.py --n 8192 --d 4096 --v 151936 --dtype bfloat16     # on a GPU

The methods take turns, round by round, and a method's time is the median of its rounds: forward and
backward, gradients of hidden states and weights, of policy losses first and then of log-probs alone. On a
CPU, seconds are those of this process alone (other programs do not count) on one thread, and memory is the
peak of resident memory above the start of the call; on a GPU they are the device's. Errors are against
float64, relative to the largest value. Liger, CCE, TRL and matplotlib take part where they are installed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.kernels.advantage import group_advantage
from nanov2.kernels.linear_policy_loss import linear_policy_loss
from nanov2.kernels.logprob import linear_logprob
from nanov2.kernels.policy_loss import policy_loss

# Peak of dense 16-bit products in TFLOP/s and of memory in TB/s, from the makers' data sheets
PEAKS = {
    "A100": (312, 2.0),
    "H100": (989, 3.35),
    "H200": (989, 4.8),
    "B200": (2250, 8.0),
    "MI300X": (1307, 5.3),
}


def full_logits(h, w, target):
    return torch.log_softmax((h @ w.T).float(), dim=-1).gather(1, target[:, None])[:, 0]


def methods(device: str, n: int, d: int, v: int) -> dict[str, Callable]:
    """Log-probs [N] from hidden states, weights and targets, by name."""
    found = {"log_softmax on full logits": full_logits, "nanov2 linear_logprob": linear_logprob}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # torch ≥ 2.13
        for size in (None, 256, 512):

            def chunked(h, w, t, size=size):
                options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=size)
                return -F.linear_cross_entropy(h, w, t, reduction="none", options=options)

            found[f"torch linear_cross_entropy, chunk {size or 'auto'}"] = chunked
    try:
        if device == "cuda":
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

            found["Liger fused linear CE, reduction none"] = lambda h, w, t: -liger(h, w, t, reduction="none")
        from liger_kernel.chunked_loss.fused_linear_ppo import _ChunkedSelectiveLogProbFunction as selective

        found["Liger chunked log-prob"] = lambda h, w, t: selective.apply(h, w, t, None, 1.0, 4096)
    except ImportError:
        pass
    try:
        from cut_cross_entropy import linear_cross_entropy as cce

        if device == "cuda":  # what it has for CPUs is full logits under torch.compile
            found["CCE"] = lambda h, w, t: -cce(h, w, t, reduction="none", impl="cce")
    except ImportError:
        pass
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction as trl

        found["TRL chunked log-prob"] = lambda h, w, t: trl.apply(h, w, None, t, 1.0, 4096, None, 1.0, ())[0]
    except ImportError:
        pass
    return found


class Meter:
    """Seconds and peak megabytes of a call."""

    def __init__(self, device: str):
        self.device = device
        self.clock = time.perf_counter if device == "cuda" else time.process_time
        self.has_peak = device == "cuda" or Path("/proc/self/clear_refs").exists()
        self.libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def _status(self, field: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        raise OSError(f"/proc/self/status has no {field}")

    def _start(self) -> float:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 2**20
        if not self.has_peak:
            return 0.0
        self.libc.malloc_trim(0)  # what earlier calls freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        return self._status("VmRSS")

    def _peak(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / 2**20
        return self._status("VmHWM") if self.has_peak else float("nan")

    def __call__(self, run: Callable) -> tuple[float, float]:
        before = self._start()
        start = self.clock()
        run()
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = self.clock() - start
        return seconds, self._peak() - before


def problem(n, d, v, dtype, device):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(n, d, generator=g).to(device, dtype).requires_grad_()
    w = (torch.randn(v, d, generator=g) / d**0.5 * 2).to(device, dtype).requires_grad_()
    return h, w, torch.randint(0, v, (n,), generator=g).to(device)


def both_passes(method, h, w, target):
    def run():
        h.grad = w.grad = None
        method(h, w, target).sum().backward()

    return run


def errors(method, h, w, target, rows=64):
    """Of the first rows: log-probs, and gradients of the hidden states, against float64."""
    some, exact = h[:rows].detach().requires_grad_(), h[:rows].detach().double().requires_grad_()
    found = method(some, w.detach(), target[:rows])
    wanted = full_logits_64(exact, w.detach(), target[:rows])
    found.sum().backward()
    wanted.sum().backward()
    pairs = (found.detach(), wanted.detach()), (some.grad, exact.grad)
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs]


def full_logits_64(h, w, target):
    logits = torch.cat([h @ part.double().T for part in w.split(4096)], dim=1)
    return torch.log_softmax(logits, dim=-1).gather(1, target[:, None])[:, 0]


def compare(device, n, d, v, dtype, rounds) -> None:
    """The table of log-prob methods, and the bars of the chunked form where this is their size."""
    meter, (h, w, target) = Meter(device), problem(n, d, v, dtype, device)
    found = methods(device, n, d, v)
    print(f"\nlinear log-prob, N={n} D={d} V={v} {str(dtype)[6:]} on {device}, {rounds} rounds")
    rows: dict[str, list] = {}
    for name, method in dict(found).items():  # small first calls: compilation, and what cannot run here
        try:
            method(h[:4], w[:8], target[:4] % 8).sum().backward()
            rows[name] = []
        except Exception as error:
            print(f"  {name}: does not run here ({type(error).__name__})")
            del found[name]
    for _ in range(rounds):
        for name, method in found.items():
            rows[name].append(meter(both_passes(method, h, w, target)))
            h.grad = w.grad = None
    print(f"  {'method':44} {'s':>8} {'MB':>8} {'log-prob':>9} {'∂hidden':>9}" + share_header(device))
    for name, method in found.items():
        seconds = statistics.median(s for s, _ in rows[name])
        peak = max(m for _, m in rows[name])
        logp, grad = errors(method, h, w, target)
        line = f"  {name:44} {seconds:8.3f} {peak:8.0f} {logp:9.1e} {grad:9.1e}"
        print(line + shares(device, seconds, n, d, v, h.element_size()))
    base, ours = rows["log_softmax on full logits"], rows["nanov2 linear_logprob"]
    ratio = statistics.median(b[0] / a[0] for a, b in zip(base, ours, strict=True))
    print(f"  nanov2 takes {ratio:.2f} of the time of full logits (median of the rounds' ratios)")


def loss_methods(device: str, n: int, d: int, v: int, old, advantage, offsets) -> dict[str, Callable]:
    """Policy losses (off policy, clipped, without KL) from hidden states, weights and targets, by name."""
    given = {"old_logp": old}
    found = {
        "nanov2 linear_policy_loss": lambda h, w, t: linear_policy_loss(h, w, t, advantage, offsets, **given)[
            0
        ],
        "nanov2 linear_policy_loss, bf16 products": lambda h, w, t: linear_policy_loss(
            h, w, t, advantage, offsets, precision="bf16", **given
        )[0],
    }
    for name, method in methods(device, n, d, v).items():
        found[f"{name} + policy_loss"] = lambda h, w, t, f=method: policy_loss(
            f(h, w, t).float(), old, advantage, offsets
        )[0]
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        rows = len(advantage)
        liger = LigerFusedLinearGRPOLoss(
            use_ref_model=False,
            beta=0.0,
            epsilon_low=0.2,
            epsilon_high=0.28,
            loss_type="bnpo",
            compiled=False,
        )

        def liger_loss(h, w, t):
            shape = rows, len(t) // rows
            mask = torch.ones(shape, device=h.device)
            x, tokens, before = h.view(*shape, -1), t.view(shape), old.view(shape)
            return liger(x, w, tokens, mask, advantage, old_per_token_logps=before)[0]

        found["Liger fused linear GRPO"] = liger_loss
    except ImportError:
        pass
    return found


def compare_losses(device, n, d, v, dtype, rounds) -> None:
    """The table of policy losses, the methods in turn: time, memory and errors against float64."""
    meter, (h, w, target) = Meter(device), problem(n, d, v, dtype, device)
    rows = n // 128 if n % 128 == 0 else 1
    g = torch.Generator().manual_seed(1)
    offsets = torch.arange(0, n + 1, n // rows, device=device)
    advantage = torch.randn(rows, generator=g).to(device)
    exact = [x.detach().double().requires_grad_() for x in (h, w)]
    parts = zip(
        exact[0].split(256), target.split(256), strict=True
    )  # in chunks: all logits would take 0.8 GB
    with torch.no_grad():
        logp = torch.cat([full_logits_64(a, exact[1], t) for a, t in parts])
    old = (logp + 0.1 * torch.randn(n, generator=g).to(device)).float()
    logp.requires_grad_()
    wanted = policy_loss(logp, old, advantage, offsets)[0]
    wanted.backward()
    for a, t, c in zip(exact[0].split(256), target.split(256), logp.grad.split(256), strict=True):
        torch.autograd.backward((full_logits_64(a, exact[1], t) * c).sum())
    found = loss_methods(device, n, d, v, old, advantage, offsets)
    print(f"\nlinear policy loss, N={n} D={d} V={v} {str(dtype)[6:]} on {device}, {rounds} rounds")
    runs: dict[str, list] = {name: [] for name in found}
    errors_of = {}
    for name, method in dict(found).items():  # first calls: compilation, and what cannot run here
        try:
            h.grad = w.grad = None
            loss = method(h, w, target)
            loss.backward()
            pairs = (loss.detach(), wanted.detach()), (h.grad, exact[0].grad), (w.grad, exact[1].grad)
            errors_of[name] = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs]
        except Exception as error:
            print(f"  {name}: does not run here ({type(error).__name__}: {str(error).splitlines()[0][:60]})")
            del found[name]
    del exact
    for _ in range(rounds):
        for name, method in found.items():
            h.grad = w.grad = None
            runs[name].append(meter(lambda f=method: f(h, w, target).backward()))
    h.grad = w.grad = None
    print(f"  {'method':58} {'s':>7} {'of full':>7} {'MB':>6} {'loss':>8} {'∂hidden':>8} {'∂weight':>8}")
    full = runs["log_softmax on full logits + policy_loss"]
    for name in found:
        seconds, peak = statistics.median(s for s, _ in runs[name]), max(m for _, m in runs[name])
        ratio = statistics.median(a[0] / b[0] for a, b in zip(runs[name], full, strict=True))
        figures = " ".join(f"{x:8.1e}" for x in errors_of[name])
        print(f"  {name:58} {seconds:7.3f} {ratio:7.2f} {peak:6.0f} {figures}")


def share_header(device: str) -> str:
    return f" {'FLOPs':>6} {'memory':>6}" if device == "cuda" else ""


def shares(device, seconds, n, d, v, size) -> str:
    """Of the hardware's limit: the three products that are needed, and one read of each input and output."""
    if device != "cuda":
        return ""
    name = torch.cuda.get_device_name()
    peak = next((x for key, x in PEAKS.items() if key in name), None)
    if peak is None:
        return f"  (no limits known for {name})"
    flops, moved = 3 * 2 * n * d * v, 2 * size * (n * d + v * d)
    return f" {flops / seconds / peak[0] / 1e12:6.1%} {moved / seconds / peak[1] / 1e12:6.1%}"


def small(device, repeats=30) -> None:
    """The sizes of the default experiment on the embedded world, and of one GPU step."""
    meter = Meter(device)
    print(f"\nsmall calls on {device}, forward and backward, median of {repeats}, milliseconds")

    def line(label, calls):
        times = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                times[name].append(meter(call)[0] * 1e3)
        print(f"  {label:44}" + "".join(f"  {k} {statistics.median(v):7.2f}" for k, v in times.items()))

    h, w, target = problem(8000, 128, 64, torch.float32, device)
    pair = {"eager": full_logits, "nanov2": linear_logprob}
    line("log-prob, N=8000 D=128 V=64", {k: both_passes(f, h, w, target) for k, f in pair.items()})
    for tokens in (8192, 131072):
        old = -torch.rand(tokens, device=device)
        logp = (old + 0.1 * torch.randn(tokens, device=device)).requires_grad_()
        offsets = torch.arange(0, tokens + 1, 128, device=device)
        advantage = torch.randn(len(offsets) - 1, device=device)

        def loss(impl, logp=logp, old=old, advantage=advantage, offsets=offsets):
            policy_loss(logp, old, advantage, offsets, ref_logp=old, kl_coef=0.1, impl=impl)[0].backward()

        calls = {"reference": lambda f=loss: f("reference"), "nanov2": lambda f=loss: f(None)}
        line(f"policy loss with KL, T={tokens}", calls)
    rewards, ids = torch.rand(4096, device=device), torch.arange(4096, device=device) // 16
    calls = {"reference": lambda: group_advantage(rewards, ids, impl="reference")}
    line("advantage, 256 groups of 16", calls | {"nanov2": lambda: group_advantage(rewards, ids)})


def sweep(device, dtype, quick) -> dict[str, dict]:
    """Seconds and megabytes against the vocabulary and against tokens, for the methods of the plot."""
    meter, d = Meter(device), 128 if quick else 256
    fixed, grid = (512, (1024, 4096, 16384)) if quick else (1024, (2048, 8192, 32768))
    names = ("log_softmax on full logits", "nanov2 linear_logprob", "torch linear_cross_entropy, chunk 256")
    out: dict[str, dict] = {"vocabulary": {}, "tokens": {}}
    for axis, curves in out.items():
        for size in grid if axis == "vocabulary" else [x // 8 for x in grid]:
            n, v = (fixed, size) if axis == "vocabulary" else (size, 16 * fixed)
            h, w, target = problem(n, d, v, dtype, device)
            for name, method in methods(device, n, d, v).items():
                if name in names:
                    method(h[:4], w[:8], target[:4] % 8).sum().backward()  # what a first call loads
                    h.grad = w.grad = None
                    runs = []
                    for _ in range(1 + (device == "cuda")):  # on a GPU the first one tunes
                        runs.append(meter(both_passes(method, h, w, target)))
                        h.grad = w.grad = None  # or the next start would count these gradients
                    curves.setdefault(name, []).append((size, *runs[-1]))
    return out


def draw(curves: dict[str, dict], path: Path, title: str) -> None:
    try:
        import matplotlib
    except ImportError:
        print("\nmatplotlib is not installed: no plot")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for column, (axis, lines) in zip(axes.T, curves.items(), strict=True):
        for place, unit, ax in ((1, "seconds", column[0]), (2, "MB above start", column[1])):
            for name, points in lines.items():
                ax.plot([p[0] for p in points], [p[place] for p in points], marker="o", label=name)
            ax.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit)
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    print(f"\ndrew {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--n", type=int, default=2048, help="tokens (default %(default)s)")
    parser.add_argument("--d", type=int, default=576, help="hidden dimension (default %(default)s)")
    parser.add_argument("--v", type=int, default=49152, help="vocabulary (default %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--no-plot", action="store_true", help="the tables alone")
    parser.add_argument("--plot-only", action="store_true", help="the plot alone")
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype, where = (
        getattr(torch, a.dtype),
        torch.cuda.get_device_name() if device == "cuda" else "one CPU thread",
    )
    print(f"torch {torch.__version__}, {where}")
    if not a.plot_only:
        small(device, 3 if a.quick else 30)
        size = (256, 64, 4096) if a.quick else (a.n, a.d, a.v)
        compare_losses(device, *size, dtype, a.rounds)
        compare(device, *size, dtype, a.rounds)
    if not a.no_plot:
        path = Path(__file__).with_suffix(".png")
        draw(
            sweep(device, dtype, a.quick), path, f"linear log-prob, forward and backward, {a.dtype}, {where}"
        )


if __name__ == "__main__":
    main()
