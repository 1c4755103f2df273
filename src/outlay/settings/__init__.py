"""Hyper-parameters of a training and of a teacher's answers, as plain data.

Each setting is declared once, in `TrainSettings`, `TeachSettings` or the settings of a PEFT method: its type, its limits, its
effect. Checks, keys of a task file, options of the command line and the tables of `docs/training.md` are read from there.
"""

from outlay.settings.declared import ANSWERS as ANSWERS
from outlay.settings.declared import RUNNING as RUNNING
from outlay.settings.declared import TRAINING as TRAINING
from outlay.settings.declared import Setting as Setting
from outlay.settings.declared import SettingField as SettingField
from outlay.settings.defaults import default_settings as default_settings
from outlay.settings.defaults import is_none_by_default as is_none_by_default
from outlay.settings.defaults import role_settings as role_settings
from outlay.settings.peft import PEFT_SETTINGS as PEFT_SETTINGS
from outlay.settings.peft import Ia3Settings as Ia3Settings
from outlay.settings.peft import LoraSettings as LoraSettings
from outlay.settings.peft import PeftSettings as PeftSettings
from outlay.settings.peft import peft_options as peft_options
from outlay.settings.training import BLOCK_ROWS as BLOCK_ROWS
from outlay.settings.training import DEFAULT_THREADS as DEFAULT_THREADS
from outlay.settings.training import DIVERGENCES as DIVERGENCES
from outlay.settings.training import LARGEST_SEED as LARGEST_SEED
from outlay.settings.training import LEAST_SEED as LEAST_SEED
from outlay.settings.training import MOST_THREADS as MOST_THREADS
from outlay.settings.training import SAVE_SECONDS as SAVE_SECONDS
from outlay.settings.training import TEMPERATURES as TEMPERATURES
from outlay.settings.training import TeachSettings as TeachSettings
from outlay.settings.training import TrainSettings as TrainSettings
from outlay.settings.training import check_optimizer as check_optimizer
from outlay.settings.training import check_seed as check_seed
from outlay.settings.training import check_threads as check_threads
from outlay.settings.training import setting_fields as setting_fields
