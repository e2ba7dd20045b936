"""Tasks: a model, its loss, and what of it is trained."""

from jaxfed.tasks import scores as scores
from jaxfed.tasks.classifier import classification as classification
from jaxfed.tasks.generation import beam_search as beam_search
from jaxfed.tasks.generation import generate as generate
from jaxfed.tasks.generation import greedy as greedy
from jaxfed.tasks.generation import sampled as sampled
from jaxfed.tasks.language import next_token as next_token
from jaxfed.tasks.measures import f1 as f1
from jaxfed.tasks.measures import matthews as matthews
from jaxfed.tasks.regressor import regression as regression
from jaxfed.tasks.span import answer_span as answer_span
from jaxfed.tasks.task import Task as Task
from jaxfed.tasks.task import means as means
