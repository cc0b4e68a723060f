import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pneumobatch import config, tables
from pneumobatch.evaluation.drift import measure, stability_index

OPTIONS = config.Evaluation()
RECORD = {"run_id": "r", "model_id": "m", "threshold": 0.4}


def films(count, seed, *, sick=0.3, contrast=5.0, manufacturers=12, rejected=0.05):
    """Films whose scores, statistics and attributes are drawn from one population."""
    draw = np.random.default_rng(seed)
    status = draw.choice(["scored", "rejected", "failed"], p=[0.98 - rejected, rejected, 0.02], size=count)
    known = draw.random(count) < sick
    columns = {
        "status": status,
        "probability": pa.array(1 / (1 + np.exp(-draw.normal(np.where(known, 2, -2), 1.5))), mask=status != "scored"),
        "width": draw.choice([1024, 2048, 2500], p=[0.5, 0.3, 0.2], size=count),
        "height": draw.integers(900, 3000, count),
        "mean_intensity": draw.beta(5, 5, count),
        "contrast": draw.beta(contrast, 5, count),
        "sharpness": draw.gamma(3, 0.02, count),
        "noise": draw.gamma(2, 0.01, count),
        "modality": draw.choice(["CR", "DX"], size=count),
        "view": draw.choice(["PA", "AP"], p=[0.8, 0.2], size=count),
        "age_years": draw.integers(0, 90, count),
        "sex": draw.choice(["F", "M", None], p=[0.48, 0.48, 0.04], size=count),
        "manufacturer": [f"M{i}" for i in np.minimum(draw.geometric(0.3, count), manufacturers)],
        "photometric": ["MONOCHROME2"] * count,
        "transfer_syntax": draw.choice(["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70"], size=count),
    }
    schema = tables.reference_schema()
    return pa.table([pa.array(columns[f.name]).cast(f.type, safe=False) for f in schema], schema=schema)


REFERENCE = films(2000, 0)


def rows(found, **wanted):
    return [row for row in found.to_pylist() if all(row[key] == value for key, value in wanted.items())]


def drifted(found):
    return {(row["measure"], row["column"]) for row in rows(found, drifted=True)}


def test_every_measure_is_there_once():
    found = measure(REFERENCE, films(500, 1), OPTIONS, RECORD)
    assert found.schema.equals(tables.drift_schema(), check_metadata=True)
    pairs = [(row["measure"], row["column"]) for row in found.to_pylist()]
    numbers = ["probability", *tables.STATISTICS]
    categories = ["modality", "view", "age_band", "sex", "manufacturer", "photometric", "transfer_syntax"]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {("psi", n) for n in [*numbers, *categories]} | {("ks", n) for n in numbers} | {
        ("positive_rate", "probability"), ("rejection_rate", "status"), ("failure_rate", "status"),
    }  # fmt: skip
    assert all(row["drifted"] is None and row["bound"] is None for row in rows(found, measure="ks"))


@pytest.mark.parametrize("count", [130, 400, 3000])
def test_films_of_the_same_population_do_not_drift(count):
    alarms = judged = 0
    for seed in range(150):
        found = measure(REFERENCE, films(count, 1000 + seed), OPTIONS, RECORD).to_pylist()
        alarms += sum(row["drifted"] is True for row in found)
        judged += sum(row["drifted"] is not None for row in found)
    assert judged >= 150 * 15
    assert alarms <= 4  # a thousandth at most is meant: 2.6


def test_resamples_of_the_reference_do_not_drift():
    draw = np.random.default_rng(0)
    for _ in range(60):
        again = REFERENCE.take(pa.array(draw.integers(0, len(REFERENCE), 250)))
        assert not drifted(measure(REFERENCE, again, OPTIONS, RECORD))


def test_another_prior_exposure_device_and_domain_are_found():
    assert {("positive_rate", "probability")} <= drifted(measure(REFERENCE, films(400, 1, sick=0.8), OPTIONS, RECORD))
    assert drifted(measure(REFERENCE, films(400, 1, contrast=2.0), OPTIONS, RECORD)) == {("psi", "contrast")}
    assert drifted(measure(REFERENCE, films(400, 1, rejected=0.5), OPTIONS, RECORD)) == {("rejection_rate", "status")}
    new = films(400, 1, manufacturers=1)
    assert drifted(measure(REFERENCE, new, OPTIONS, RECORD)) == {("psi", "manufacturer")}


def test_unseen_and_missing_categories_and_widths_are_found():
    new = films(400, 1)
    for name, values in (("view", ["LL"] * 400), ("sex", [None] * 400), ("width", [1024 + 1] * 400)):
        index = new.column_names.index(name)
        changed = new.set_column(index, new.schema.field(index), pa.array(values, new.schema.field(index).type))
        assert drifted(measure(REFERENCE, changed, OPTIONS, RECORD)) == {("psi", name)}


def test_few_films_are_measured_and_not_judged():
    found = measure(REFERENCE, films(90, 1, sick=1.0, contrast=1.0), OPTIONS, RECORD)
    assert len(found) and not rows(found, drifted=True) and not rows(found, drifted=False)
    assert all(row["value"] is not None for row in found.to_pylist())


def test_a_night_of_rejected_films_is_judged_by_its_images():
    found = measure(REFERENCE, films(300, 1, rejected=0.98), OPTIONS, RECORD)
    assert drifted(found) == {("rejection_rate", "status")}


def test_what_the_reference_does_not_know_is_not_measured():
    bare = tables.upgraded(REFERENCE.select(["status", "probability", "contrast"]), tables.reference_schema())
    found = measure(bare, films(400, 1), OPTIONS, RECORD)
    assert {row["column"] for row in found.to_pylist()} == {"probability", "status", "contrast"}
    assert not len(measure(tables.reference_schema().empty_table(), films(400, 1), OPTIONS, RECORD))
    assert not rows(measure(REFERENCE, films(0, 1), OPTIONS, RECORD), drifted=True)


def test_values_agree_with_an_independent_computation():
    new = films(700, 3, contrast=4.0)
    found = measure(REFERENCE, new, OPTIONS, RECORD)
    x, y = (t.filter(pc.field("status") == "scored")["contrast"].to_numpy().astype(float) for t in (REFERENCE, new))
    edges = np.r_[-np.inf, np.percentile(x, range(10, 100, 10)), np.inf]
    p, q = (np.histogram(v, edges)[0] + 0.5 for v in (x, y))
    p, q = p / p.sum(), q / q.sum()
    (psi,), (ks,) = rows(found, measure="psi", column="contrast"), rows(found, measure="ks", column="contrast")
    assert psi["value"] == pytest.approx(sum((a - b) * np.log(a / b) for a, b in zip(q, p, strict=True)), abs=2e-3)
    assert psi["bound"] == pytest.approx(0.25 + 9 * (1 / x.size + 1 / y.size))
    assert (psi["reference_value"], psi["run_value"]) == pytest.approx((x.mean(), y.mean()))
    grid = np.sort(np.r_[x, y])
    gap = [np.searchsorted(np.sort(v), grid, "right") / v.size for v in (x, y)]
    assert ks["value"] == pytest.approx(np.abs(gap[0] - gap[1]).max())
    (rate,) = rows(found, measure="positive_rate")
    called = [np.sum(t["probability"].drop_null().to_numpy() >= 0.4) for t in (REFERENCE, new)]
    sizes = [rate["reference_n"], rate["n"]]
    table = [called, [n - k for n, k in zip(sizes, called, strict=True)]]
    assert rate["p_value"] == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue)
    assert rate["value"] == pytest.approx(called[1] / sizes[1] - called[0] / sizes[0])


counts = st.lists(st.integers(0, 200), min_size=2, max_size=12).filter(sum)


@settings(max_examples=100, deadline=None)
@given(counts, st.data())
def test_the_stability_index_is_a_symmetric_distance(old, data):
    new = data.draw(st.lists(st.integers(0, 200), min_size=len(old), max_size=len(old)).filter(sum))
    a, b = np.array(old), np.array(new)
    value, bins = stability_index(a, b)
    assert 0 <= value < np.inf and value == pytest.approx(stability_index(b, a)[0])
    assert stability_index(a, a) == (0, np.count_nonzero(a))
    assert bins == np.count_nonzero(a + b)


def test_without_drift_the_stability_index_is_a_scaled_chi_square():
    draw = np.random.default_rng(0)
    m, n = 1500, 400
    values = [stability_index(draw.multinomial(m, [0.1] * 10), draw.multinomial(n, [0.1] * 10))[0] for _ in range(2000)]
    scaled = np.array(values) / (1 / m + 1 / n)
    assert scaled.mean() == pytest.approx(9, rel=0.05)
    assert np.quantile(scaled, 0.99) == pytest.approx(stats.chi2.ppf(0.99, 9), rel=0.1)


def test_films_that_an_earlier_night_accepted_as_missing_are_no_drift():
    scored = [{"status": "scored", "probability": i / 700} for i in range(700)]
    reference = pa.Table.from_pylist(scored, schema=tables.reference_schema())
    rows = pa.Table.from_pylist(scored[::7] + [{"status": "failed"}] * 30, schema=tables.reference_schema())
    for again, expected in ((0, (30 / 130, 130, True)), (30, (0, 100, False))):
        found = measure(reference, rows, OPTIONS, RECORD | {"failed_again": again}).to_pylist()
        (rate,) = (row for row in found if row["measure"] == "failure_rate")
        assert (rate["run_value"], rate["n"], rate["drifted"]) == expected
