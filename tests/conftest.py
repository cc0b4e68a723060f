"""What tests share: one small archive, one small bundle, one local engine for the whole session."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from pneumobatch import cluster, tables
from pneumobatch.archive import phantoms
from pneumobatch.config import Cluster, Network
from pneumobatch.models import bundle as bundles
from pneumobatch.models.networks import build

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real X-rays beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the real X-rays of ../shared/data are not here")
    return SHARED


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled archive of 60 phantoms with planted defects."""
    folder = tmp_path_factory.mktemp("films")
    phantoms.write_archive(folder, 60, seed=3)
    return folder


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What `films` holds, by kind."""
    return phantoms.write_archive(tmp_path_factory.mktemp("again"), 60, seed=3)


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., bundles.Bundle]:
    """Writes a bundle of an untrained network."""

    def make(
        uri: str, *, size: int = 64, name: str = "attention_resnet18", seed: int = 0, **more: object
    ) -> bundles.Bundle:
        torch.manual_seed(seed)
        config = Network(name=name, image_size=size)
        network = build(config)
        fields = {"temperature": 1.5, "threshold": 0.5, "target": "sensitivity >= 0.95", **more}
        bundle = bundles.Bundle(network=config, preprocessing=bundles.Preprocessing(image_size=size), **fields)  # type: ignore[arg-type]
        history, reference = pa.table({"epoch": [1.0]}), tables.reference_schema().empty_table()
        return bundles.save(uri, bundle, network.state_dict(), history, reference, "# MODEL_ID\n")

    return make


@pytest.fixture(scope="session")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., bundles.Bundle]) -> str:
    """A small bundle."""
    uri = str(tmp_path_factory.mktemp("bundle"))
    make_bundle(uri)
    return uri


@pytest.fixture(scope="session")
def engine() -> Iterator[cluster.Resources]:
    """The local engine that all engine tests share."""
    with cluster.engine(Cluster(num_cpus=2, object_store_gb=0.5)) as resources:
        yield resources
