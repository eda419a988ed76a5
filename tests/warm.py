"""Imported for its effect: what stages load or make at its first use is there before they are forked."""

import importlib

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from launch.provenance import code_version, package_versions
from tests.frozen import freeze

for name in ("scipy.stats", "sklearn.covariance", "sklearn.datasets", "sklearn.model_selection"):
    importlib.import_module(name)
get_checkpoint_conversion_mapping("")  # the rules for the weights of every architecture
code_version()
package_versions()
freeze()
