from .calibration import Calibration as Calibration
from .classifier import Classifier as Classifier
