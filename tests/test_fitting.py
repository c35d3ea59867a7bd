import importlib.util
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diffmatch
from diffmatch.errors import InputError
from diffmatch.fitting import DivergedError, FitState, fit
from diffmatch.optim import make_optimizer, optimizer_names

NAN = float("nan")
SCRIPT = Path(__file__).with_name("kill_and_resume.py")


def load(script: Path) -> Any:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kill_and_resume = load(SCRIPT)


def leaf(*shape: int, value: float = 0.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, value, dtype=dtype, requires_grad=True)


def parabola(x: torch.Tensor) -> torch.Tensor:
    return (x - 1).square().sum()


def bare_loop(x: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The loop as one writes it by hand."""
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parabola(x)
        if getattr(optimizer, "needs_graph", False):
            return loss
        loss.backward()
        return loss.detach()

    for _ in range(steps):
        losses.append(float(optimizer.step(closure)))
    return losses


class TestSteps:
    @pytest.mark.parametrize("name", optimizer_names())
    def test_same_bits_as_a_loop_by_hand(self, name):
        x, y = leaf(5, 3, value=3.0), leaf(5, 3, value=3.0)
        history = fit([x], lambda: parabola(x), optimizer=name, steps=7)
        assert history.loss == bare_loop(y, make_optimizer(name, [y]), 7)
        assert torch.equal(x, y)

    def test_history_tells_what_happened(self):
        x = leaf(4)
        history = fit([x], lambda: {"fit": parabola(x), "size": 0.1 * x.square().sum()}, steps=10, lr=0.1)
        assert (history.status, history.message) == ("completed", "all 10 steps were taken")
        assert history.steps == history.evaluations == len(history.loss) == len(history.lr) == 10
        assert history.seconds > 0
        for total, a, b in zip(history.loss, history.terms["fit"], history.terms["size"], strict=True):
            assert total == pytest.approx(a + b)
        json.dumps(history.to_dict())

    def test_line_search_evaluates_several_times_a_step(self):
        x = leaf(4)
        history = fit([x], lambda: (x - 1).pow(4).sum(), optimizer="lbfgs", steps=3)
        assert history.evaluations > history.steps == 3
        assert history.loss[0] == 4.0

    def test_loss_may_take_the_step(self):
        x, seen = leaf(4), []
        fit([x], lambda step: parabola(x) * (seen.append(step) or 1), steps=4)
        assert seen == [0, 1, 2, 3]

    def test_groups_have_rates_of_their_own(self):
        x, y = leaf(3), leaf(3)
        fit([{"params": x, "lr": 0.0}, {"params": [y]}], lambda: parabola(x) + parabola(y), lr=0.1, steps=5)
        assert torch.equal(x, torch.zeros(3))
        assert (y > 0.4).all()

    def test_module(self):
        torch.manual_seed(0)
        model, frozen = nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False)
        both = nn.Sequential(model, frozen)
        before = frozen.weight.clone()
        history = fit(both, lambda: both(torch.eye(3)).square().sum(), optimizer="sgd", steps=20)
        assert history.loss[-1] < history.loss[0]
        assert torch.equal(frozen.weight, before)

    def test_instance_of_an_optimizer(self):
        x = leaf(3)
        optimizer = torch.optim.SGD([x], lr=0.5)
        fit(None, lambda: parabola(x), optimizer=optimizer, steps=1)
        assert torch.equal(x, torch.ones(3))

    def test_parameters_may_live_without_gradients_for_a_while(self):
        x, y = leaf(3), leaf(3)
        history = fit([x, y], lambda step: parabola(x) if step < 5 else parabola(x) + parabola(y), steps=10, lr=0.1)
        assert history.status == "completed"
        assert y.abs().max() > 0

    def test_gradients_switched_off_by_the_caller(self):
        x = leaf(3)
        with torch.no_grad():
            history = fit([x], lambda: parabola(x), steps=3, lr=0.1)
        assert history.loss[-1] < history.loss[0]

    def test_no_steps(self):
        x = leaf(3)
        assert fit([x], lambda: parabola(x), steps=0, ema=0.9).status == "completed"
        assert torch.equal(x, torch.zeros(3))

    def test_empty_parameter(self):
        x, empty = leaf(3), leaf(0)
        assert fit([x, empty], lambda: parabola(x) + empty.sum(), steps=3).status == "completed"

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_dtypes(self, dtype):
        x = leaf(3, dtype=dtype)
        history = fit([x], lambda: parabola(x), optimizer="sgd", lr=0.1, steps=20)
        assert x.dtype == dtype
        assert history.loss[-1] < 0.2 * history.loss[0]

    @pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
    def test_mixed_precision(self, autocast):
        x, seen = leaf(4, 4), []

        def loss() -> torch.Tensor:
            product = x @ torch.eye(4)
            seen.append(product.dtype)
            return parabola(product.float())

        history = fit([x], loss, autocast=autocast, optimizer="sgd", lr=0.1, steps=40)
        assert set(seen) == {autocast}
        assert x.dtype == torch.float32
        assert history.loss[-1] < 0.02 * history.loss[0]

    def test_optimizer_that_differentiates_itself(self):
        x = leaf(3)
        history = fit(None, lambda: parabola(x), optimizer=kill_and_resume.Doubling([x], lr=0.1), steps=30)
        assert history.loss[-1] < 1e-2 * history.loss[0]

    def test_is_at_the_top_of_the_package(self):
        assert diffmatch.fit is fit


class TestRates:
    def test_schedule_and_warmup(self):
        x = leaf(3)
        history = fit([x], lambda: parabola(x), steps=6, lr=2.0, schedule="linear", warmup=2, optimizer="adam")
        assert history.lr == pytest.approx([1.0, 2.0, 2.0, 1.5, 1.0, 0.5])

    def test_instance_gets_its_rate_back(self):
        x = leaf(3)
        optimizer = torch.optim.Adam([x], lr=0.5)
        fit(None, lambda: parabola(x), optimizer=optimizer, steps=6, schedule="cosine")
        assert optimizer.param_groups[0]["lr"] == 0.5

    def test_scheduler_of_torch(self):
        x = leaf(3)
        schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1)
        assert fit([x], lambda: parabola(x), steps=5, lr=1.0, schedule=schedule).lr == pytest.approx(
            [1.0, 1.0, 0.1, 0.1, 0.01]
        )

    def test_callback_may_change_a_constant_rate(self):
        x = leaf(3)
        optimizer = torch.optim.Adam([x], lr=1.0)

        def halve(state: FitState) -> None:
            optimizer.param_groups[0]["lr"] *= 0.5

        assert fit(None, lambda: parabola(x), optimizer=optimizer, steps=3, callbacks=[halve]).lr == [1.0, 0.5, 0.25]

    def test_clipping(self):
        x = leaf(1)
        fit([x], lambda: 100 * x.sum(), optimizer="sgd", lr=1.0, steps=1, clip_norm=0.25)
        assert x.item() == pytest.approx(-0.25)


class TestAverage:
    def test_parameters_end_as_the_average_of_the_steps(self):
        x, values = leaf(3), []
        fit(
            [x],
            lambda: parabola(x),
            steps=6,
            lr=0.1,
            ema=0.7,
            callbacks=[lambda state: values.append(state.params[0].detach().clone())],
        )
        weights = 0.7 ** torch.arange(5.0, -1, -1)
        torch.testing.assert_close(x.detach(), (weights / weights.sum()) @ torch.stack(values))
        assert not torch.equal(x, values[-1])

    def test_raw_values_stay_in_the_checkpoint(self, tmp_path):
        x, last = leaf(3), []
        settings: dict[str, Any] = {"lr": 0.1, "ema": 0.7, "checkpoint": tmp_path / "run.pt"}
        fit(
            [x],
            lambda: parabola(x),
            steps=6,
            callbacks=[lambda state: last.append(state.params[0][0].item())],
            **settings,
        )
        content = torch.load(tmp_path / "run.pt", weights_only=True)["content"]
        assert float(content["params"][0][0]) == last[-1]
        whole = leaf(3)
        fit([x], lambda: parabola(x), steps=9, **settings)
        fit([whole], lambda: parabola(whole), steps=9, lr=0.1, ema=0.7)
        assert torch.equal(x, whole)


class TestCallbacks:
    def test_see_the_state_after_the_step(self):
        x, states = leaf(3), []
        fit([x], lambda: {"only": parabola(x)}, steps=3, lr=0.5, callbacks=[states.append])
        assert [s.step for s in states] == [1, 2, 3]
        assert states[0].loss == states[0].terms["only"] == 3.0
        assert states[0].lr == 0.5
        assert states[0].params[0] is x
        assert states[0].history.steps == 3

    def test_true_stops_after_all_were_asked(self):
        x, seen = leaf(3), []
        stop = [lambda s: s.step == 4, lambda s: seen.append(s.step)]
        history = fit([x], lambda: parabola(x), steps=9, callbacks=stop)
        assert (history.status, history.message) == ("stopped", "a callback stopped the fit after 4 steps")
        assert seen == [1, 2, 3, 4]

    @pytest.mark.parametrize("value", [1, "yes", None, False])
    def test_other_values_do_not_stop(self, value):
        x = leaf(3)
        assert fit([x], lambda: parabola(x), steps=3, callbacks=[lambda s: value]).status == "completed"


class TestEnds:
    def test_convergence(self):
        x = leaf(3)
        history = fit([x], lambda: parabola(x) + 1, optimizer="sgd", steps=500, tol=1e-6, patience=10)
        assert history.status == "converged"
        assert 20 <= history.steps < 500
        assert history.steps % 10 == 0
        assert history.loss[-1] == pytest.approx(1.0, abs=1e-3)

    def test_convergence_at_zero(self):
        x = leaf(3, value=1.0)
        history = fit([x], lambda: parabola(x), optimizer="sgd", steps=50, tol=0.0, patience=2)
        assert (history.status, history.steps) == ("converged", 4)

    def test_noise_does_not_hide_convergence_nor_feign_it(self, generator):
        x = leaf(3, value=1.0)
        noisy = fit([x], lambda: parabola(x) + 1 + 0.1 * torch.rand((), generator=generator), tol=0.02, patience=25)
        assert noisy.status == "converged"
        falling = leaf(3, value=100.0)
        slow = fit([falling], lambda: parabola(falling), steps=100, lr=0.1, tol=1e-3, patience=10, optimizer="adam")
        assert slow.status == "completed"

    def test_time_limit(self):
        x = leaf(3)
        history = fit([x], lambda: (time.sleep(0.02), parabola(x))[1], steps=1000, max_seconds=0.1)
        assert history.status == "timed out"
        assert 1 <= history.steps <= 6
        assert "0.1 seconds were over at step" in history.message


class TestDivergence:
    def test_first_loss(self):
        x = leaf(3)
        history = fit([x], lambda: parabola(x) * NAN, steps=5)
        assert (history.status, history.message) == ("diverged", "step 0: the loss is nan")
        assert (history.steps, history.loss) == (0, [])
        assert torch.equal(x, torch.zeros(3))

    def test_later_loss_brings_the_last_good_parameters_back(self):
        x, values = leaf(3), []

        def loss(step: int) -> torch.Tensor:
            values.append(x.detach().clone())
            return parabola(x) * (NAN if step == 4 else 1.0)

        history = fit([x], loss, steps=9, lr=0.1)
        assert history.message == "step 4: the loss is nan"
        assert history.steps == len(history.loss) == 4
        assert torch.equal(x, values[3])

    def test_gradient_is_blamed_by_name(self):
        x, model = leaf(3), nn.Linear(1, 1)
        history = fit([x], lambda: (x - 0).abs().sqrt().sum(), steps=5)
        assert history.message.startswith("step 0: the norm of the gradient of parameter 0 of shape (3,) is ")
        nn.init.zeros_(model.bias)
        history = fit(model, lambda: model.weight.sum() + model.bias.sqrt().sum(), steps=5)
        assert "the gradient of parameter 'bias' is inf" in history.message

    def test_line_search_keeps_the_best_of_its_step(self):
        x = leaf(1, value=4.0, dtype=torch.float64)
        history = fit([x], lambda: x.log().sum(), optimizer="lbfgs", steps=50)  # falls, until it leaves the domain
        assert history.status == "diverged"
        assert 0 < x.item() < 4

    def test_last_update_is_looked_at_too(self):
        x = leaf(1, value=1e20)
        history = fit([x], lambda: 1e10 * x.sum(), optimizer="sgd", lr=1e38, steps=1)
        assert history.status == "diverged"
        assert history.message == "step 1: the last update left a value in the parameters that is not finite"
        assert x.item() == pytest.approx(1e20)

    def test_never_reaches_state_or_checkpoint(self, tmp_path):
        x = leaf(3)
        optimizer = torch.optim.Adam([x], lr=0.1)
        settings: dict[str, Any] = {"optimizer": optimizer, "checkpoint": tmp_path / "run.pt", "checkpoint_every": 2}
        history = fit(None, lambda step: parabola(x) * (NAN if step == 5 else 1.0), steps=9, **settings)
        assert history.status == "diverged"
        assert all(torch.isfinite(t).all() for state in optimizer.state.values() for t in state.values())
        content = torch.load(tmp_path / "run.pt", weights_only=True)["content"]
        assert content["history"]["steps"] == 4

    def test_resumed_fit_diverges_to_the_same_bits(self, tmp_path):
        def run(stop_at: int) -> tuple[Any, torch.Tensor]:
            x = leaf(3)

            def loss(step: int) -> torch.Tensor:
                if step == stop_at:
                    raise KeyboardInterrupt
                return parabola(x) * (NAN if step == 5 else 1.0)

            return fit([x], loss, steps=9, lr=0.1, checkpoint=tmp_path / "run.pt"), x

        with pytest.raises(KeyboardInterrupt):
            run(5)
        resumed, x = run(-1)
        (tmp_path / "run.pt").unlink()
        whole, y = run(-1)
        assert resumed.message == whole.message == "step 5: the loss is nan"
        assert torch.equal(x, y)

    def test_average_is_not_taken(self):
        x, values = leaf(3), []
        fit([x], lambda step: (values.append(x.detach().clone()), parabola(x) * (NAN if step == 4 else 1))[1], ema=0.9)
        assert torch.equal(x, values[3])

    def test_can_be_an_error(self):
        x = leaf(3)
        with pytest.raises(DivergedError, match=r"^step 2: the loss is nan$") as caught:
            fit([x], lambda step: parabola(x) * (NAN if step == 2 else 1.0), steps=9, throw=True)
        assert caught.value.history.steps == 2
        assert pickle.loads(pickle.dumps(caught.value)).history == caught.value.history

    def test_overflow_under_loss_scaling_skips_steps(self):
        x = leaf(4, 4)
        history = fit([x], lambda: parabola(x @ torch.eye(4)), autocast=torch.float16, optimizer="sgd", steps=30)
        assert history.status == "completed"
        assert history.evaluations < history.steps == 30
        assert history.loss[0] == history.loss[1] > history.loss[-1]

    def test_endless_overflow_is_divergence(self):
        x = leaf(3)
        history = fit([x], lambda: x.sqrt().sum(), autocast=torch.float16, steps=100)
        assert history.message == "step 29: gradients overflowed in 30 steps in a row"
        assert torch.equal(x, torch.zeros(3))


@pytest.fixture(scope="module")
def deaths(tmp_path_factory) -> dict[str, Any]:
    """Outcome of the fits that were killed; see the script."""
    folder = tmp_path_factory.mktemp("deaths")
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    subprocess.run([sys.executable, "-W", "error", str(SCRIPT), str(folder)], check=True, env=environment, timeout=300)
    return json.loads((folder / "report.json").read_text())


class TestResume:
    @pytest.mark.parametrize("name", kill_and_resume.scenarios())
    def test_killed_fit_continues_to_the_same_bits(self, deaths, name):
        results, ends = deaths[name]["results"], deaths[name]["ends"]
        assert results["resumed"] == results["saved"]
        assert results["again"] == results["saved"]
        assert kill_and_resume.DIED in ends
        assert set(ends) <= {kill_and_resume.DIED, 0}
        assert results["saved"]["history"]["status"] in ("completed", "converged", "stopped")

    @pytest.mark.parametrize("name", kill_and_resume.scenarios())
    def test_killed_fit_leaves_no_rubbish(self, deaths, name):
        assert deaths[name]["files"] == ["resumed.pt", "saved.pt"]
        assert deaths[name]["hidden"] == []

    @pytest.mark.parametrize(
        ("where", "error"),
        [
            *((where, error) for where in ("loss", "callback") for error in (KeyboardInterrupt, RuntimeError)),
            *(("signal", error) for error in (KeyboardInterrupt, SystemExit)),
        ],
    )
    def test_interrupted_fit_loses_nothing(self, tmp_path, generator, where, error):
        def run(fail: bool, **settings: Any) -> tuple[Any, torch.Tensor, int]:
            x, calls, noise = leaf(3), [0], generator.clone_state()

            def interrupt(here: str) -> None:
                if fail and where == here and calls[0] == 8:
                    if here != "signal":
                        raise error
                    signal.raise_signal(signal.SIGINT if error is KeyboardInterrupt else signal.SIGTERM)

            def loss() -> torch.Tensor:
                calls[0] += 1
                shift = torch.rand(3, generator=noise)
                interrupt("loss")
                interrupt("signal")
                return parabola(x + 0.1 * shift)

            callbacks = [lambda state: interrupt("callback")]
            history = fit([x], loss, steps=12, lr=0.1, generators=[noise], callbacks=callbacks, **settings)
            return history, x, calls[0]

        file = tmp_path / "run.pt"
        with pytest.raises(error):
            run(True, checkpoint=file)
        saved = torch.load(file, weights_only=True)["content"]["history"]
        assert (saved["steps"], saved["status"]) == (7 if where == "loss" else 8, "running")
        resumed, x, calls = run(False, checkpoint=file)
        whole, y, _ = run(False)
        assert calls == 12 - saved["steps"]
        assert (resumed.loss, resumed.evaluations) == (whole.loss, whole.evaluations)
        assert torch.equal(x, y)

    @pytest.mark.parametrize("name", ["adam", "lbfgs"])
    def test_interruption_leaves_consistent_parameters(self, name):
        x, seen = leaf(3, value=5.0), []

        def loss() -> torch.Tensor:
            seen.append(x.detach().clone())
            if len(seen) == 9:
                raise KeyboardInterrupt
            return (x - 1).pow(4).sum()

        with pytest.raises(KeyboardInterrupt):
            fit([x], loss, optimizer=name, steps=50)
        if name == "adam":  # the ninth evaluation begins a step
            assert torch.equal(x, seen[-1])
        else:  # it is in a line search, in the middle of a step
            assert torch.equal(x, min(seen[:-1], key=lambda value: (value - 1).pow(4).sum().item()))

    def test_finished_fit_is_returned_without_evaluating(self, tmp_path):
        x, y = leaf(3), leaf(3)
        first = fit([x], lambda: parabola(x), steps=5, lr=0.1, ema=0.5, checkpoint=tmp_path / "run.pt")
        again = fit([y], lambda: pytest.fail("evaluated"), steps=5, lr=0.1, ema=0.5, checkpoint=tmp_path / "run.pt")
        assert again == first
        assert torch.equal(x, y)

    @pytest.mark.parametrize("ending", [{"callbacks": [lambda s: s.step == 4]}, {"tol": 1.0, "patience": 2}])
    def test_stopped_and_converged_fits_are_finished(self, tmp_path, ending):
        x = leaf(3)
        first = fit([x], lambda: parabola(x), steps=9, checkpoint=tmp_path / "run.pt", **ending)
        assert first.steps == 4
        assert fit([x], lambda: pytest.fail("evaluated"), steps=9, checkpoint=tmp_path / "run.pt", **ending) == first
        assert fit([x], lambda: parabola(x), steps=10, checkpoint=tmp_path / "run.pt").steps == 10

    def test_more_steps_go_on(self, tmp_path):
        x, y = leaf(3), leaf(3)
        fit([x], lambda: parabola(x), steps=5, checkpoint=tmp_path / "run.pt")
        longer = fit([x], lambda: parabola(x), steps=9, checkpoint=tmp_path / "run.pt")
        whole = fit([y], lambda: parabola(y), steps=9)
        assert (longer.loss, longer.steps, longer.status) == (whole.loss, 9, "completed")
        assert torch.equal(x, y)

    def test_timed_out_fit_goes_on(self, tmp_path):
        x = leaf(3)
        settings: dict[str, Any] = {"steps": 6, "max_seconds": 1e-9, "checkpoint": tmp_path / "run.pt"}
        for step in range(1, 6):
            history = fit([x], lambda: parabola(x), **settings)
            assert (history.status, history.steps) == ("timed out", step)
        history = fit([x], lambda: parabola(x), **settings)
        assert (history.status, history.steps) == ("completed", 6)

    def test_seconds_add_up(self, tmp_path):
        x = leaf(3)
        first = fit([x], lambda: parabola(x), steps=3, checkpoint=tmp_path / "run.pt").seconds
        assert fit([x], lambda: parabola(x), steps=4, checkpoint=tmp_path / "run.pt").seconds > first

    def test_resume_can_be_declined(self, tmp_path):
        x = leaf(3)
        fit([x], lambda: parabola(x), steps=5, checkpoint=tmp_path / "run.pt")
        y = leaf(3)
        assert (
            len(fit([y], lambda: parabola(y), steps=4, lr=0.1, checkpoint=tmp_path / "run.pt", resume=False).loss) == 4
        )
        assert torch.load(tmp_path / "run.pt", weights_only=True)["content"]["history"]["steps"] == 4

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"optimizer": "sgd"}, r"checkpoint: want optimizer 'torch\.optim\.sgd\.SGD', as in this call"),
            ({"lr": 0.5}, r"checkpoint: want lr '0\.5', as in this call, got '0\.001'"),
            ({"params": [leaf(4)]}, r"checkpoint: want parameters \['\(4,\) torch\.float32'\]"),
            ({"params": [leaf(3, dtype=torch.float64)]}, r"checkpoint: want parameters .*float64"),
            ({"schedule": "cosine"}, "checkpoint: want schedule 'cosine'"),
            ({"ema": 0.9}, r"checkpoint: want ema 0\.9"),
            ({"clip_norm": 1.0}, r"checkpoint: want clip_norm 1\.0"),
            ({"autocast": torch.bfloat16}, "checkpoint: want autocast"),
            ({"fingerprint": {"mesh": "b"}}, "checkpoint: want fingerprint: mesh 'b', as in this call, got 'a'"),
            ({"generators": [torch.Generator()]}, "generators: want 0 generators, as in the checkpoint, got 1"),
            ({"state": {"thing": nn.Identity()}}, "state: want nothing, as in the checkpoint, got thing"),
        ],
    )
    def test_checkpoint_of_another_fit_is_refused(self, tmp_path, changes, message):
        x = leaf(3)
        settings: dict[str, Any] = {"steps": 3, "checkpoint": tmp_path / "run.pt", "fingerprint": {"mesh": "a"}}
        fit([x], lambda: parabola(x), **settings)
        with pytest.raises(InputError, match=message):
            fit(**{"params": [leaf(3)], "loss": lambda: pytest.fail("evaluated"), **settings, **changes})

    def test_steps_matter_where_the_schedule_depends_on_them(self, tmp_path):
        x = leaf(3)
        fit([x], lambda: parabola(x), steps=3, schedule="cosine", checkpoint=tmp_path / "run.pt")
        with pytest.raises(InputError, match="checkpoint: want steps 4, as in this call, got 3"):
            fit([x], lambda: parabola(x), steps=4, schedule="cosine", checkpoint=tmp_path / "run.pt")

    def test_damaged_checkpoint_is_refused(self, tmp_path):
        x = leaf(3)
        fit([x], lambda: parabola(x), steps=3, checkpoint=tmp_path / "run.pt")
        (tmp_path / "run.pt").write_bytes((tmp_path / "run.pt").read_bytes()[:-100])
        with pytest.raises(InputError, match="checkpoint: want a checkpoint of fit"):
            fit([x], lambda: parabola(x), steps=3, checkpoint=tmp_path / "run.pt")


class TestArguments:
    @pytest.mark.untyped
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"params": []}, "params: want at least one tensor that requires gradients, got none"),
            ({"params": None}, "params: want tensors, parameter groups or a module, got None"),
            ({"params": [torch.ones(3)]}, "params: want tensors that require gradients"),
            ({"loss": 1.0}, "loss: want a function of no argument or of the step, got float"),
            ({"loss": lambda: 1.0}, "loss: want a scalar tensor, got float"),
            ({"optimizer": "adamm"}, r"optimizer: want one of .*, got 'adamm' \(did you mean 'adam'\?\)"),
            ({"optimizer_options": {"beta": 1}}, "optimizer_options: want one of .*, got 'beta'"),
            ({"lr": -1.0}, "lr: want a number >= 0, got -1.0"),
            ({"steps": -1}, "steps: want a whole number >= 0, got -1"),
            ({"steps": 1.5}, "steps: want a whole number >= 0, got 1.5"),
            ({"schedule": "cosin"}, r"schedule: want one of .* \(did you mean 'cosine'\?\)"),
            ({"warmup": -1}, "warmup: want a whole number >= 0, got -1"),
            ({"clip_norm": 0.0}, "clip_norm: want a number > 0, got 0.0"),
            ({"ema": 1.0}, r"ema: want a decay in \[0, 1\), got 1.0"),
            ({"autocast": torch.float64}, "autocast: want None, torch.bfloat16 or torch.float16, got torch.float64"),
            ({"autocast": torch.float16, "optimizer": "lbfgs"}, "autocast: want None or torch.bfloat16"),
            ({"tol": -1.0}, "tol: want a number >= 0, got -1.0"),
            ({"tol": NAN}, "tol: want a number >= 0, got nan"),
            ({"patience": 0}, "patience: want a whole number >= 1, got 0"),
            ({"max_seconds": 0.0}, "max_seconds: want a number > 0, got 0.0"),
            ({"checkpoint_every": 0}, "checkpoint_every: want a whole number >= 1, got 0"),
            ({"checkpoint": "/nowhere/run.pt"}, "checkpoint: want a writable folder, got /nowhere"),
        ],
    )
    def test_bad_arguments_are_named(self, changes, message):
        x = leaf(3)
        with pytest.raises(InputError, match=message):
            fit(**{"params": [x], "loss": lambda: parabola(x), "steps": 2, **changes})

    def test_no_clipping_where_the_optimizer_differentiates(self):
        x = leaf(3)
        with pytest.raises(InputError, match="clip_norm: want None with an optimizer that differentiates"):
            fit(None, lambda: parabola(x), optimizer=kill_and_resume.Doubling([x]), clip_norm=1.0)

    def test_terms_must_stay_the_same(self):
        x = leaf(3)
        with pytest.raises(InputError, match="loss: want the terms a in every step, got b"):
            fit([x], lambda step: {"a" if step < 2 else "b": parabola(x)}, steps=5)


class TestProgress:
    @pytest.mark.parametrize(
        ("terminal", "progress", "shown"), [(True, True, True), (True, False, False), (False, True, False)]
    )
    def test_bar_is_for_terminals(self, monkeypatch, terminal, progress, shown):
        stream = io.StringIO()
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr("diffmatch.fitting._BAR_DELAY", 0.01)
        x = leaf(3)
        fit([x], lambda: (time.sleep(0.01), parabola(x))[1], steps=20, progress=progress)
        assert ("loss" in stream.getvalue()) is shown

    def test_short_fits_show_nothing(self, monkeypatch):
        stream = io.StringIO()
        stream.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", stream)
        x = leaf(3)
        fit([x], lambda: parabola(x), steps=3)
        assert stream.getvalue() == ""
