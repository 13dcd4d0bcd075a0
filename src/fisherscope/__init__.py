"""fisherscope: Fisher information of unmodified models, exact, with its uncertainty."""

from fisherscope.analysis import (
    Asymmetry,
    Concentration,
    Damage,
    DamageIndex,
    Importance,
    Overlap,
    RecycledComparison,
    Similarity,
    StepDamage,
    TopCoordinates,
    TopDirections,
    Uncertainty,
    asymmetry,
    compare_recycled,
    concentration,
    damage,
    damage_index,
    descent_step,
    importance,
    masks,
    mean_gradient,
    overlap,
    similarity,
    spectrum,
    step_damage,
    top_coordinates,
    top_directions,
    uncertainty,
)
from fisherscope.checkpoint import Checkpoint
from fisherscope.data import Example, examples, mask_tokens, read_jsonl
from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.errors import (
    ConfigError,
    CoverageError,
    DataError,
    FisherscopeError,
    IdentityError,
    LikelihoodError,
    NonFiniteError,
    ParameterError,
    RankError,
    StoreError,
    TaskError,
)
from fisherscope.estimation import estimate, estimate_into
from fisherscope.integrations.hub import from_hub, push_to_hub
from fisherscope.metrics.base import FisherBase
from fisherscope.metrics.bombshell import BombshellMetrics
from fisherscope.metrics.modularity import ExtendedModularityMetrics, ModularityMetrics
from fisherscope.metrics.unified import UnifiedModelAnalyzer
from fisherscope.naming import Layers, layers
from fisherscope.planning import Plan, plan
from fisherscope.preparation import VERSION as __version__
from fisherscope.products import Operator, operator
from fisherscope.recycling import SquaredGradients, from_optimizer
from fisherscope.specs import EKFAC, KFAC, Block, Dense
from fisherscope.store import FisherStore
from fisherscope.structures import (
    BlockFisher,
    DenseFisher,
    DiagonalFisher,
    EKFACFisher,
    Fisher,
    FisherEMA,
    GroupedFisher,
    KFACFisher,
    load,
)
from fisherscope.studies.brittleness import Brittleness, brittleness
from fisherscope.studies.conflict import Conflict, conflict
from fisherscope.studies.forgetting import Forgetting, forgetting
from fisherscope.studies.interference import Interference, interference
from fisherscope.studies.percolation import (
    FiniteSize,
    Percolation,
    compare_percolation,
    finite_size,
    percolation,
)
from fisherscope.studies.remedies import Remedies, remedies
from fisherscope.surgery import (
    EWC,
    Merged,
    Sparsity,
    keep_pruned,
    merge,
    precondition,
    prune,
    sparsity,
)

__all__ = [
    # estimates
    "BlockFisher",
    "DenseFisher",
    "DiagonalFisher",
    "EKFACFisher",
    "Fisher",
    "FisherEMA",
    "FisherStore",
    "GroupedFisher",
    "KFACFisher",
    "Operator",
    "Plan",
    "SquaredGradients",
    "estimate",
    "estimate_into",
    "from_hub",
    "from_optimizer",
    "load",
    "operator",
    "plan",
    "push_to_hub",
    # data
    "Example",
    "examples",
    "mask_tokens",
    "read_jsonl",
    # answers
    "Asymmetry",
    "Concentration",
    "Damage",
    "DamageIndex",
    "Importance",
    "Overlap",
    "RecycledComparison",
    "Similarity",
    "StepDamage",
    "TopCoordinates",
    "TopDirections",
    "Uncertainty",
    "asymmetry",
    "compare_recycled",
    "concentration",
    "damage",
    "damage_index",
    "descent_step",
    "importance",
    "masks",
    "mean_gradient",
    "overlap",
    "similarity",
    "spectrum",
    "step_damage",
    "top_coordinates",
    "top_directions",
    # changes
    "EWC",
    "Merged",
    "Sparsity",
    "keep_pruned",
    "merge",
    "precondition",
    "prune",
    "sparsity",
    "uncertainty",
    # studies
    "Brittleness",
    "Conflict",
    "FiniteSize",
    "Forgetting",
    "Interference",
    "Percolation",
    "brittleness",
    "Remedies",
    "compare_percolation",
    "conflict",
    "finite_size",
    "forgetting",
    "interference",
    "percolation",
    "remedies",
    # the named classes
    "BombshellMetrics",
    "ExtendedModularityMetrics",
    "FisherBase",
    "ModularityMetrics",
    "UnifiedModelAnalyzer",
    # structures
    "Block",
    "Dense",
    "EKFAC",
    "KFAC",
    # settings
    "Checkpoint",
    "DEFAULTS",
    "FisherConfig",
    "Layers",
    "layers",
    "__version__",
    # errors
    "ConfigError",
    "CoverageError",
    "DataError",
    "FisherscopeError",
    "IdentityError",
    "LikelihoodError",
    "NonFiniteError",
    "ParameterError",
    "RankError",
    "StoreError",
    "TaskError",
    "FiniteSize",
]
