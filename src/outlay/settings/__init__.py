"""Hyper-parameters of a training and of a teacher's answers, as plain data.

Each setting is declared once, in `TrainSettings`, `TeachSettings` or the settings of a method: its type, its limits, its
effect. Checks, keys of a task file, options of the command line and the tables of `docs/training.md` are read from there.
"""

from outlay.settings.declared import ANSWERS as ANSWERS
from outlay.settings.declared import RUNNING as RUNNING
from outlay.settings.declared import SHORT_NAMES as SHORT_NAMES
from outlay.settings.declared import TRAINING as TRAINING
from outlay.settings.declared import Setting as Setting
from outlay.settings.declared import SettingField as SettingField
from outlay.settings.defaults import default_settings as default_settings
from outlay.settings.defaults import is_none_by_default as is_none_by_default
from outlay.settings.defaults import role_settings as role_settings
from outlay.settings.methods import AUTO_METHOD as AUTO_METHOD
from outlay.settings.methods import METHOD as METHOD
from outlay.settings.methods import METHOD_NAMES as METHOD_NAMES
from outlay.settings.methods import METHOD_SETTINGS as METHOD_SETTINGS
from outlay.settings.methods import OLD_METHOD_KEY as OLD_METHOD_KEY
from outlay.settings.methods import OLD_METHOD_REMARK as OLD_METHOD_REMARK
from outlay.settings.methods import ContrastiveSettings as ContrastiveSettings
from outlay.settings.methods import FullSettings as FullSettings
from outlay.settings.methods import Ia3Settings as Ia3Settings
from outlay.settings.methods import LoraSettings as LoraSettings
from outlay.settings.methods import MethodSettings as MethodSettings
from outlay.settings.methods import PeftSettings as PeftSettings
from outlay.settings.methods import ProbeSettings as ProbeSettings
from outlay.settings.methods import ProbeThenTuneSettings as ProbeThenTuneSettings
from outlay.settings.methods import check_method as check_method
from outlay.settings.methods import flat_settings as flat_settings
from outlay.settings.methods import method_options as method_options
from outlay.settings.methods import peft_methods as peft_methods
from outlay.settings.methods import without_auto_method as without_auto_method
from outlay.settings.training import BLOCK_ROWS as BLOCK_ROWS
from outlay.settings.training import DEFAULT_THREADS as DEFAULT_THREADS
from outlay.settings.training import DIVERGENCES as DIVERGENCES
from outlay.settings.training import LARGEST_SEED as LARGEST_SEED
from outlay.settings.training import LEAST_SEED as LEAST_SEED
from outlay.settings.training import MOST_THREADS as MOST_THREADS
from outlay.settings.training import POOLINGS as POOLINGS
from outlay.settings.training import SAVE_SECONDS as SAVE_SECONDS
from outlay.settings.training import TEMPERATURES as TEMPERATURES
from outlay.settings.training import TeachSettings as TeachSettings
from outlay.settings.training import TrainSettings as TrainSettings
from outlay.settings.training import check_optimizer as check_optimizer
from outlay.settings.training import check_seed as check_seed
from outlay.settings.training import check_threads as check_threads
from outlay.settings.training import setting_fields as setting_fields
from outlay.settings.training import used_methods as used_methods
