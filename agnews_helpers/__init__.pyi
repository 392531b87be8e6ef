"""What an editor sees: `__init__.py` fetches each name when it is first used."""

from .batching import Collator as Collator
from .batching import epoch_batches as epoch_batches
from .batching import make_loader as make_loader
from .batching import sorted_batches as sorted_batches
from .batching import tokenize as tokenize
from .budgeting import config_for as config_for
from .budgeting import full_run_hours as full_run_hours
from .budgeting import training_step as training_step
from .checking import check_data as check_data
from .data import SUPPORT as SUPPORT
from .data import load_data as load_data
from .evaluation import Classifier as Classifier
from .evaluation import Report as Report
from .evaluation import classify as classify
from .evaluation import evaluate as evaluate
from .evaluation import predict_logits as predict_logits
from .evaluation import score as score
from .hardware import describe_machine as describe_machine
from .hardware import this_card as this_card
from .model import load_classifier as load_classifier
from .model import load_model as load_model
from .model import load_tokenizer as load_tokenizer
from .model import pretrained_name as pretrained_name
from .plumbing.errors import AgnewsError as AgnewsError
from .plumbing.errors import Damaged as Damaged
from .plumbing.errors import DataError as DataError
from .plumbing.errors import DoesNotFit as DoesNotFit
from .plumbing.errors import FolderInUse as FolderInUse
from .plumbing.errors import HubUnreachable as HubUnreachable
from .plumbing.errors import InvalidValue as InvalidValue
from .plumbing.errors import MiniUnavailable as MiniUnavailable
from .plumbing.errors import NonFiniteError as NonFiniteError
from .plumbing.errors import ResumeError as ResumeError
from .plumbing.errors import SaveError as SaveError
from .plumbing.vram_cap import vram_cap as vram_cap
from .profiles import environment_overrides as environment_overrides
from .profiles import recipe_for_this_machine as recipe_for_this_machine
from .recipe import LABELS as LABELS
from .recipe import Recipe as Recipe
from .runs import Run as Run
from .training import forward_backward as forward_backward
from .training import train as train

__version__: str
