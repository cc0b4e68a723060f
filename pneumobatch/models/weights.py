"""A bundle's weights: written with all that belongs to them, and loaded into their network."""

import hashlib

import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pneumobatch import storage
from pneumobatch.models.bundle import Bundle
from pneumobatch.models.networks import Classifier, build, settle


def save_bundle(
    uri: str, bundle: Bundle, weights: dict[str, Tensor], history: pa.Table, reference: pa.Table, card: str
) -> Bundle:
    """Writes a bundle, bundle.json last, and returns it with its hashes filled in.

    Args:
        uri: The bundle's folder.
        bundle: All but its hashes and model_id.
        weights: The network's state.
        history: One row an epoch.
        reference: `tables.reference_schema`.
        card: Markdown; MODEL_ID in it is replaced.
    """
    blob = save_safetensors({name: tensor.contiguous() for name, tensor in weights.items()})
    bundle = bundle.model_copy(update={"weights_sha256": hashlib.sha256(blob).hexdigest()})
    bundle = bundle.model_copy(update={"model_id": bundle.named()})
    storage.write_bytes(storage.join(uri, "model.safetensors"), blob)
    storage.write_table(storage.join(uri, "history.parquet"), history)
    storage.write_table(storage.join(uri, "reference.parquet"), reference)
    written = storage.read_bytes(storage.join(uri, "reference.parquet"))
    bundle = bundle.model_copy(update={"reference_sha256": hashlib.sha256(written).hexdigest()})
    storage.write_bytes(storage.join(uri, "CARD.md"), card.replace("MODEL_ID", bundle.model_id).encode())
    storage.write_bytes(storage.join(uri, "bundle.json"), bundle.model_dump_json(indent=2).encode())
    return bundle


def load_network(uri: str, bundle: Bundle) -> Classifier:
    """Reads the weights into the bundle's network, ready to score (`settle`), after checking their hash.

    Raises:
        ValueError: The weights are missing, were changed, or do not fit.
    """
    try:
        blob = storage.read_bytes(storage.join(uri, "model.safetensors"))
    except FileNotFoundError:
        raise ValueError(f"screening.bundle: {uri} holds no model.safetensors") from None
    if hashlib.sha256(blob).hexdigest() != bundle.weights_sha256:
        raise ValueError(f"screening.bundle: {uri}/model.safetensors is not the file that bundle.json was written for")
    network = build(bundle.network, initialise=False)
    try:
        network.load_state_dict(load_safetensors(blob))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"screening.bundle: {uri}/model.safetensors does not fit its network: {error}") from None
    settle(network)
    return network.eval()
