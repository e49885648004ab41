"""What an ensemble's configuration must obey by itself, and against the models of its steps."""

import pytest
from ensemble_models import DECOUPLED, ensemble, model, parsed, step

from microkernel import InvalidArgument, ModelConfig
from microkernel.config.validate import problems
from microkernel.ensembles.fitting import fit

CHAIN = (step("m", "X=a", "Y=t"), step("m", "X=t", "Y=y"))


def found(text: str) -> list[str]:
    return problems(parsed(text))


@pytest.mark.parametrize(
    "text",
    [
        ensemble("e", "a", "y", *CHAIN),
        ensemble("e", "a", "y", *reversed(CHAIN)),
        ensemble("e", "a", "y t", *CHAIN),  # what a step takes may be an output, too
        ensemble("e", "a", "y a", *CHAIN),  # and what comes in
        ensemble("e", "a b", "y", step("m", "X=a Z=b W=a", "Y=y"), limit=3),
    ],
)
def test_ensembles_that_are_right(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "e" platform: "ensemble" ensemble_scheduling { }', "must specify 'step' for "),
        (
            ensemble("e", "a", "y", step("", "X=a", "Y=y")),
            "must specify 'model_name' in step 0 of ensemble 'e'",
        ),
        (
            ensemble("e", "a", "y", *CHAIN, step("m", "", "Y=z")),
            "must specify 'input_map' in step 2 of ensemble 'e'",
        ),
        (
            ensemble("e", "a", "y", *CHAIN, step("m", "X=a", "")),
            "must specify 'output_map' in step 2 of ensemble 'e'",
        ),
        (
            ensemble("e", "a", "y", *CHAIN, step("m", "X=a", "Y=y")),
            "ensemble tensor 'y' can appear in an output map only once",
        ),
        (
            ensemble("e", "a b", "y", *CHAIN, step("m", "X=a", "Y=b")),
            "ensemble tensor 'b' can appear in an output map only once",
        ),
        (ensemble("e", "a b", "y", *CHAIN), "ensemble input 'b' for ensemble e' is not used"),
        (ensemble("e", "a", "y z", *CHAIN), "ensemble output 'z' for ensemble e' is not used"),
        (
            ensemble("e", "a", "y", step("m", "X=a Z=b", "Y=t"), step("m", "X=t", "Y=y")),
            "output 'y' for ensemble 'e' is not written: at least one of its depending tensors, "
            "'b', is not connected",
        ),
        (
            ensemble("e", "a", "y", step("m", "X=a Z=u", "Y=t"), step("m", "X=t", "Y=y Z=u")),
            "output 'y' for ensemble 'e' is not written",
        ),
        (
            ensemble("e", "a", "y", *CHAIN, step("m", "X=a", "Y=z")),
            "ensemble tensor 'z' is unused in ensemble 'e'",
        ),
        (
            ensemble("e", "a", "y", *CHAIN, step("m", "X=u", "Y=v"), step("m", "X=v", "Y=u")),
            "ensemble tensor 'u' is unused in ensemble 'e'",
        ),
        (ensemble("e", "a", "", *CHAIN), "must specify 'output' for ensemble 'e'"),
        (
            ensemble("e", "a", "y", *CHAIN).replace("platform", "backend"),
            "ensemble scheduling cannot be set for model 'e' whose platform is not ensemble",
        ),
        (
            ensemble("e", "a", "y", *CHAIN).replace("version: -1", "version: -2", 1),
            "'model_version' in step 0 of ensemble 'e' must be a version, or -1 for the latest, "
            "got -2",
        ),
        (
            'name: "e" platform: "ensemble"',
            "ensemble scheduling must be set for ensemble e whose platform is ensemble",
        ),
    ],
)
def test_what_an_ensemble_must_obey_by_itself(text: str, message: str) -> None:
    assert found(text)[0].startswith(message)


def fitted(text: str, *models: str) -> ModelConfig:
    config = parsed(text)
    fit(config, [parsed(each) for each in models])
    return config


ONE = ensemble("e", "a", "y", step("m", "X=a", "Y=y"))
TWO = ensemble("e", "a", "y", step("m", "X=a", "Y=t"), step("n", "X=t", "Y=y"))
WIDE = "data_type: TYPE_INT32 dims: [ 16 ]"
ANY = "data_type: TYPE_INT32 dims: [ -1 ]"
MASKED = (
    'parameters { key: "PAD_TO_LONGEST" value { string_value: "X" } } '
    'parameters { key: "PAD_MASK" value { string_value: "Z" } } '
)


@pytest.mark.parametrize(
    ("text", "models", "message"),
    [
        (
            ONE + "max_batch_size: 3",
            [model("m", more="max_batch_size: 2")],
            "ensemble e allows maximum batch size 3, but it contains model m which only allows "
            "maximum batch size to be 2",
        ),
        (
            ONE,
            [model("m", "W", more='input { name: "Z" data_type: TYPE_INT32 dims: 1 }')],
            "ensemble tensor a is mapping to non-existing input X in model m",
        ),
        (
            ONE,
            [model("m", outputs="Z")],
            "ensemble tensor y is mapped from non-existing output Y in model m",
        ),
        (
            ONE,
            [model("m", "X Z")],
            "input Z in model m is not mapped to any ensemble tensors",
        ),
        (
            ONE,
            [model("m").replace("TYPE_INT32", "TYPE_FP32")],
            "ensemble tensor a: inconsistent data type: TYPE_INT32 is inferred from model e while "
            "TYPE_FP32 is inferred from model m",
        ),
        (
            TWO,
            [model("m").replace(ANY, WIDE), model("n").replace(ANY, WIDE.replace("16", "4"))],
            "ensemble tensor t: inconsistent shape: [16] is inferred from model m while [4] is "
            "inferred from model n",
        ),
        (
            TWO,
            [
                model("m", more="max_batch_size: 8").replace(ANY, WIDE),
                model("n", more="max_batch_size: 8").replace(ANY, WIDE.replace("16", "4")),
            ],
            "ensemble tensor t: inconsistent shape: [-1,16] is inferred from model m while [-1,4] "
            "is inferred from model n",
        ),
        (
            ensemble(
                "e",
                "a",
                "y",
                step("d", "X=a", "Y=s"),
                step("d", "X=a", "Y=t"),
                step("m", "X=s Z=t", "Y=y"),
            ),
            [model("d", more=DECOUPLED), model("d", more=DECOUPLED), model("m", "X Z")],
            "step of model 'm' receives inputs originated from different decoupled models",
        ),
    ],
)
def test_what_does_not_fit_the_models(text: str, models: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        fitted(text, *models)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("text", "models"),
    [
        (ONE + "max_batch_size: 8", [model("m")]),  # one that does not batch is exempt
        (ONE.replace(ANY, WIDE), [model("m")]),  # -1 fits everything
        # a batch is a dimension of a model that does not batch
        (
            ONE.replace(ANY, WIDE) + "max_batch_size: 8",
            [model("m").replace(ANY, WIDE.replace("16", "-1, 16"))],
        ),
        (ONE, [model("m", more='input { name: "Z" dims: 1 optional: true }')]),
        (ONE, [model("m", "X Z", more=MASKED)]),  # the server makes Z
        (
            ensemble(
                "e",
                "a",
                "y",
                step("d", "X=a", "Y=s"),
                step("m", "X=s Z=a", "Y=t"),
                step("d", "X=t", "Y=y"),
            ),
            [model("d", more=DECOUPLED), model("m", "X Z"), model("d", more=DECOUPLED)],
        ),
    ],
)
def test_what_fits_the_models(text: str, models: list[str]) -> None:
    fitted(text, *models)


@pytest.mark.parametrize(("outputs", "decoupled"), [("y z", True), ("y", True), ("z", False)])
def test_an_ensemble_is_decoupled_by_what_its_outputs_need(outputs: str, decoupled: bool) -> None:
    steps = [step("d", "X=a", "Y=y"), step("m", "X=a", "Y=z")]
    config = parsed(ensemble("e", "a", outputs, *steps))
    models = [parsed(model("d", more=DECOUPLED)), parsed(model("m"))]
    assert fit(config, models).decoupled is decoupled
