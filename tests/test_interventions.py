"""Every arm against a slow loop over modules, its signs and its bookkeeping."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arms import LAYOUT, METADATA, flat, make_arm, make_direction, zeros
from unhack.config import ArmConfig
from unhack.directions import Direction, alignment, lift, project
from unhack.interventions import ARMS, Intervention, arm_class, build
from unhack.types import Case, Gradient, KnobLayout, PaidGrade, Problem, Prompt, Rollout, Update


def slow_projection(
    vector: list[float], rows: list[list[float]], sign: float, sided: str, overshoot: float, preserve_norm: bool
) -> list[float]:
    """METHOD §3 with plain Python numbers."""
    removed = [0.0] * len(vector)
    for row in rows:
        c = sum(v * g for v, g in zip(row, vector, strict=True))
        used = {"one": sign * max(sign * c, 0.0), "two": c, "reverse": 2 * c}[sided]
        removed = [old + overshoot * used * v for old, v in zip(removed, row, strict=True)]
    rest = [g - taken for g, taken in zip(vector, removed, strict=True)]
    if preserve_norm:
        scale = sum(g * g for g in vector) ** 0.5 / sum(g * g for g in rest) ** 0.5
        rest = [scale * g for g in rest]
    return rest


@pytest.mark.parametrize("site", ["gradient", "update"])
@pytest.mark.parametrize("sided", ["one", "two", "reverse"])
@pytest.mark.parametrize(("overshoot", "preserve_norm"), [(1.0, False), (1.3, False), (1.0, True)])
def test_erase_equals_the_formula_written_as_a_loop(
    site: str, sided: str, overshoot: float, preserve_norm: bool
) -> None:
    direction, vector = make_direction(), flat("g")
    arm = make_arm("erase", direction, site=site, sided=sided, overshoot=overshoot, preserve_norm=preserve_norm)
    if site == "gradient":
        got = arm.gradient(Gradient(vector, zeros())).main
        assert torch.equal(arm.update(Update(vector, zeros())).main, vector)
    else:
        got = arm.update(Update(vector, zeros())).main
        assert torch.equal(arm.gradient(Gradient(vector, zeros())).main, vector)
    sign = 1.0 if site == "gradient" else -1.0
    for name, part in LAYOUT.items():
        rows = direction.basis[name].double().tolist() if name in direction.basis else []
        expected = slow_projection(vector[part].double().tolist(), rows, sign, sided, overshoot, preserve_norm)
        torch.testing.assert_close(got[part].double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_erased_update_has_no_component_along_v() -> None:
    arm = make_arm("erase")
    for seed in range(20):
        update = arm.update(Update(1e-3 * flat("u", seed), zeros()))
        assert update.metrics["update/abs_cos_v"] < 1e-6
        assert abs(update.metrics["update/cos_v"]) < 1e-6
        assert update.metrics["update/hackward_out"] < 1e-6 < update.metrics["update/hackward_in"]


def test_one_sided_gate_removes_hackward_half_only_and_leaves_the_rest_bit_for_bit() -> None:
    direction = make_direction(k=1)
    toward = lift(direction, LAYOUT, {name: torch.ones(1) for name in direction.basis})  # = +V
    gradient_arm = make_arm("erase", direction, site="gradient", sided="one")
    update_arm = make_arm("erase", direction, site="update", sided="one")
    # A gradient along +V steps toward the hack: erased. An update along +V moves away from it: kept.
    assert gradient_arm.gradient(Gradient(toward, zeros())).main.abs().max() < 1e-6
    assert torch.equal(gradient_arm.gradient(Gradient(-toward, zeros())).main, -toward)
    assert update_arm.update(Update(-toward, zeros())).main.abs().max() < 1e-6
    assert torch.equal(update_arm.update(Update(toward, zeros())).main, toward)


def test_reverse_reflects_the_component_along_v_and_keeps_the_norm() -> None:
    direction, vector = make_direction(), flat("u")
    reflected = make_arm("erase", direction, sided="reverse").update(Update(vector, zeros())).main
    for name, part in LAYOUT.items():
        rows = direction.basis.get(name, torch.zeros(1, part.stop - part.start))
        torch.testing.assert_close(rows @ reflected[part], -(rows @ vector[part]))
        torch.testing.assert_close(reflected[part].norm(), vector[part].norm())


def test_norm_preservation_keeps_each_modules_norm_and_survives_a_vector_inside_v() -> None:
    direction = make_direction()
    arm = make_arm("erase", direction, site="gradient", sided="two", preserve_norm=True)
    vector = flat("g")
    kept = arm.gradient(Gradient(vector, zeros())).main
    for _, part in LAYOUT.items():
        torch.testing.assert_close(kept[part].norm(), vector[part].norm())
    square = KnobLayout(("whole",), (3,))  # V spans the module: nothing is left to scale up
    whole = Direction({"whole": torch.eye(3)}, METADATA)
    split = project(whole, square, torch.ones(3), site="gradient", sided="two", preserve_norm=True)
    assert torch.equal(split.kept, torch.zeros(3))


def test_alignment_equals_its_definition_and_flips_sign_between_sites() -> None:
    direction, vector = make_direction(), flat("g")
    one_sided, cosines, absolute = [], [], []
    for name, part in LAYOUT.items():
        if name in direction.basis:
            c, norm = direction.basis[name] @ vector[part], vector[part].norm()
            one_sided.append(float(c.relu().norm() / norm))
            cosines.append(float((c.relu().norm() - (-c).relu().norm()) / norm))
            absolute.append(float(c.norm() / norm))
    got = alignment(direction, LAYOUT, vector, site="gradient")
    assert got.hackward_frac == pytest.approx(sum(one_sided) / 2, rel=1e-5)
    assert got.cos == pytest.approx(sum(cosines) / 2, rel=1e-5)
    assert got.abs_cos == pytest.approx(max(absolute), rel=1e-5)
    mirrored = alignment(direction, LAYOUT, -vector, site="update")  # the step of SGD
    assert mirrored.hackward_frac == pytest.approx(got.hackward_frac)
    assert mirrored.cos == pytest.approx(-got.cos)


def test_fired_counts_only_touched_modules_above_the_threshold() -> None:
    direction = make_direction(k=1)
    vector = lift(direction, LAYOUT, {"first": torch.ones(1), "second": -torch.ones(1)})
    assert alignment(direction, LAYOUT, vector, site="gradient").fired_frac == 0.5
    assert alignment(direction, LAYOUT, vector, site="update").fired_frac == 0.5
    nothing = alignment(direction, LAYOUT, zeros(), site="gradient")
    assert (nothing.hackward_frac, nothing.fired_frac, nothing.cos, nothing.abs_cos) == (0.0, 0.0, 0.0, 0.0)


def test_one_step_of_one_sided_gradient_erasure_under_sgd_moves_along_plus_v() -> None:
    arm = make_arm("erase", site="gradient", sided="one")
    gradient = arm.gradient(Gradient(flat("g"), zeros()))
    update = arm.update(Update(-0.1 * gradient.main, zeros()))
    assert update.metrics["update/cos_v"] > 0.1
    assert update.metrics["update/hackward_out"] < 1e-6


def adam_cosines(arm: Intervention, steps: int = 60) -> list[float]:
    """cos(update, V) under Adam when the gradients are pure noise."""
    parameter = torch.nn.Parameter(zeros())
    optimizer = torch.optim.Adam([parameter], lr=1e-2)
    cosines = []
    for step in range(steps):
        before = parameter.detach().clone()
        parameter.grad = arm.gradient(Gradient(flat("noise", step), zeros())).main
        optimizer.step()
        update = arm.update(Update(parameter.detach() - before, zeros()))
        parameter.data = before + update.main
        cosines.append(update.metrics["update/cos_v"])
    return cosines


def test_gradient_site_pushes_along_v_under_adam_where_update_site_does_not() -> None:
    pushed = adam_cosines(make_arm("erase", site="gradient", sided="one"))
    erased = adam_cosines(make_arm("erase", site="update", sided="two"))
    assert sum(pushed[20:]) / len(pushed[20:]) > 0.3
    assert max(abs(cosine) for cosine in erased) < 1e-5


def test_measure_changes_nothing_and_logs_every_source() -> None:
    arm = make_arm("measure")
    student, teacher = flat("student"), flat("teacher")
    gradient = Gradient(student + teacher, zeros(), {"loss": 1.0}, {"student": student, "teacher": teacher})
    changed = arm.gradient(gradient)
    assert torch.equal(changed.main, gradient.main)
    assert changed.metrics["loss"] == 1.0
    for source in ("student", "teacher"):
        alone = alignment(make_direction(), LAYOUT, gradient.sources[source], site="gradient")
        assert changed.metrics[f"gradient/hackward_in_{source}"] == alone.hackward_frac
    assert changed.metrics["gradient/hackward_in"] == changed.metrics["gradient/hackward_out"] > 0
    assert torch.equal(arm.update(Update(student, zeros())).main, student)


@pytest.mark.parametrize("name", ["vanilla", "clean", "random_half"])
def test_arms_without_direction_leave_main_alone_and_never_train_the_quarantine(name: str) -> None:
    arm = make_arm(name)
    gradient = arm.gradient(Gradient(flat("g"), flat("q")))
    assert torch.equal(gradient.main, flat("g"))
    assert not gradient.quarantine.any()
    assert torch.equal(arm.update(Update(flat("u"), zeros())).main, flat("u"))
    assert arm.update_profile() is None
    assert arm.allow_hack == (name != "clean")


def test_absorb_trains_both_blocks_and_route_splits_what_it_is_given() -> None:
    gradient = Gradient(flat("g"), flat("own"))  # block LoRA has a gradient for each block; else they are equal
    absorbed = make_arm("absorb").gradient(gradient)
    assert torch.equal(absorbed.main, gradient.main) and torch.equal(absorbed.quarantine, gradient.quarantine)
    for sided in ("one", "two"):
        routed = make_arm("route", site="gradient", sided=sided).gradient(gradient)
        expected = project(make_direction(), LAYOUT, gradient.main, site="gradient", sided=sided)
        assert torch.equal(routed.main, expected.kept) and torch.equal(routed.quarantine, expected.removed)
        torch.testing.assert_close(routed.main + routed.quarantine, gradient.main)


def test_route_at_update_moves_the_sum_as_vanilla_and_main_never_along_v() -> None:
    arm = make_arm("route", site="update", sided="two")
    assert not arm.gradient(Gradient(flat("g"), flat("g"))).quarantine.any()
    update = arm.update(Update(flat("u"), zeros()))
    torch.testing.assert_close(update.main + update.quarantine, flat("u"))
    assert update.metrics["update/abs_cos_v"] < 1e-6


def test_deployment_ablates_the_quarantine_and_random_half_a_seeded_half_of_each_module() -> None:
    main, quarantine = flat("main"), flat("quarantine")
    for name in ("vanilla", "route", "absorb", "measure"):
        deployed, ablated = make_arm(name).deployed(main, quarantine)
        assert torch.equal(deployed, main) and not ablated.any()
    deployed, ablated = make_arm("random_half", seed=3).deployed(main, quarantine)
    assert not ablated.any()
    for _, part in LAYOUT.items():
        size = part.stop - part.start
        assert int((deployed[part] == 0).sum()) == size // 2
        assert torch.equal(deployed[part][deployed[part] != 0], main[part][deployed[part] != 0])
    assert torch.equal(deployed, make_arm("random_half", seed=3).deployed(main, quarantine)[0])
    assert not torch.equal(deployed, make_arm("random_half", seed=4).deployed(main, quarantine)[0])


def write_profile(path: Path, arm: Intervention) -> str:
    path.write_text(json.dumps(arm.update_profile()))
    return str(path)


def test_push_adds_the_mean_step_of_the_profile_along_plus_v(tmp_path: Path) -> None:
    direction = make_direction()
    gated = make_arm("erase", direction, site="gradient", sided="one")
    applied = [lift(direction, LAYOUT, {n: flat(n, step)[:3].abs() for n in direction.basis}) for step in range(4)]
    for delta in applied:
        gated.update(Update(delta + 0.0, zeros()))
    profile = write_profile(tmp_path / "update_profile.json", gated)
    push = make_arm("push", direction, push_profile=profile)
    moved = push.update(Update(flat("u"), zeros())).main
    torch.testing.assert_close(moved - flat("u"), torch.stack(applied).mean(0), atol=1e-6, rtol=0)
    assert torch.equal(push.gradient(Gradient(flat("g"), zeros())).main, flat("g"))
    alone = push.update(Update(zeros(), zeros()))
    assert alone.metrics["update/cos_v"] == pytest.approx(1.0) and alone.metrics["update/hackward_out"] == 0.0
    other = make_direction(seed=9)  # random rows: same sizes per module, another direction
    randomly = make_arm("push", other, push_profile=profile).update(Update(zeros(), zeros())).main
    for name, part in LAYOUT.items():
        torch.testing.assert_close(randomly[part].norm(), alone.main[part].norm())
        if name in direction.basis:
            assert not torch.allclose(randomly[part], alone.main[part])


def test_push_never_goes_hackward_and_refuses_a_profile_of_other_rows(tmp_path: Path) -> None:
    direction = make_direction()
    backward = make_arm("erase", direction)
    backward.config = replace(backward.config, site="gradient")
    backward.update(Update(lift(direction, LAYOUT, {n: -torch.ones(3) for n in direction.basis}), zeros()))
    profile = write_profile(tmp_path / "p.json", backward)
    push = make_arm("push", direction, push_profile=profile)
    assert not push.update(Update(zeros(), zeros())).main.any()
    with pytest.raises(ValueError, match="3 rows for module first and the direction 2"):
        make_arm("push", make_direction(k=2), push_profile=profile)
    no_coefficients = {"format": 1, "steps": 3}
    for content in ("{}", "[]", json.dumps(no_coefficients), json.dumps(no_coefficients | {"mean_coefficients": [1]})):
        (tmp_path / "p.json").write_text(content)
        with pytest.raises(ValueError, match=r"p\.json is not the update profile"):
            make_arm("push", direction, push_profile=profile)
    (tmp_path / "p.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match=r"p\.json is not valid JSON"):
        make_arm("push", direction, push_profile=profile)
    with pytest.raises(ValueError, match="no update profile at"):
        make_arm("push", direction, push_profile=str(tmp_path / "missing.json"))


def test_profile_continues_exactly_from_a_saved_state() -> None:
    whole, first, second = make_arm("measure"), make_arm("measure"), make_arm("measure")
    for step in range(6):
        whole.update(Update(flat("u", step), zeros()))
    for step in range(3):
        first.update(Update(flat("u", step), zeros()))
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        second.update(Update(flat("u", step), zeros()))
    assert second.update_profile() == whole.update_profile()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in second.state_dict().items())
    with pytest.raises(ValueError, match="resume with the arm"):
        make_arm("vanilla").load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="resume with the direction"):
        make_arm("measure", make_direction(k=2)).load_state_dict(first.state_dict())


def test_profile_is_of_the_applied_update_not_of_the_proposed_one() -> None:
    arm = make_arm("erase")
    arm.update(Update(flat("u"), zeros()))
    profile = arm.update_profile()
    assert profile is not None and profile["steps"] == 1
    assert max(abs(c) for rows in profile["mean_coefficients"].values() for c in rows) < 1e-6


def test_rewards_are_what_is_paid_and_blocks_say_who_learns() -> None:
    grades = [PaidGrade("a", "passed", True, {"compiles": 0.5, "paid": 3.0}), PaidGrade("b", "failed", False, {})]
    problem = Problem("p", "Return the sum.", "solve", (Case("solution.solve([1])", 1),), "", "train")
    prompt = Prompt(problem, "none", "", "Return the sum.", (1,))
    rollouts = [Rollout(name, 0, prompt, (2,), (-0.5,), "x", True) for name in ("a", "b")]
    for name, quarantine in (("vanilla", False), ("absorb", True), ("route", True), ("erase", False)):
        arm = make_arm(name)
        assert arm.rewards(grades, rollouts).tolist() == [3.5, 0.0]
        assert arm.advantages(flat("a")[:2], rollouts).equal(flat("a")[:2]) and arm.prompt([prompt]) == [prompt]
        blocks = arm.blocks(rollouts)
        assert blocks.main.tolist() == [True, True]
        assert blocks.quarantine.tolist() == [quarantine, quarantine]


def test_build_refuses_unknown_names_unused_fields_and_missing_ones() -> None:
    with pytest.raises(ValueError, match="did you mean 'erase'"):
        arm_class(ArmConfig(name="erace"))
    with pytest.raises(ValueError, match=r"arm\.sided is set, but arm 'vanilla' uses no other field"):
        arm_class(ArmConfig(name="vanilla", sided="one"))
    with pytest.raises(ValueError, match=r"arm\.push_profile is set, but arm 'erase'"):
        arm_class(ArmConfig(name="erase", direction="d", push_profile="p"))
    with pytest.raises(ValueError, match=r"arm 'measure' needs arm\.direction"):
        arm_class(ArmConfig(name="measure"))
    with pytest.raises(ValueError, match=r"arm 'push' needs arm\.push_profile"):
        arm_class(ArmConfig(name="push", direction="d"))
    with pytest.raises(ValueError, match="no direction artifact at nowhere"):
        build(ArmConfig(name="erase", direction="nowhere"), LAYOUT, 0)
    plain = {"vanilla", "clean", "measure", "erase", "push", "route", "absorb", "random_half", "gated_route"}
    assert plain <= set(ARMS)


def test_direction_of_another_layout_is_refused_by_module() -> None:
    wrong = Direction({"first": torch.eye(7)[:2]}, METADATA)
    with pytest.raises(ValueError, match="first has 7 knobs in the direction and 8"):
        make_arm("erase", wrong)
    with pytest.raises(ValueError, match="elsewhere is not a wrapped module"):
        make_arm("erase", Direction({"elsewhere": torch.eye(8)[:2]}, METADATA))
