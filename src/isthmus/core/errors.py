"""Every error of isthmus.

IsthmusError
├── ConfigError        a configuration or an option that cannot be carried out
│   └── StrengthError  a strength that is not a finite number in its range
├── DataError          prompts: unreadable, empty, one-sided, repeated across splits
│   └── TriggerError   a trigger that the tokenizers cannot treat alike
├── ModelError         a model that cannot be loaded or is not a decoder-only language model
│   ├── SiteError      a site that the model does not have
│   └── OrganismError  an organism that is unknown, broken or not competent
├── ShapeError         widths or shapes that do not fit together
├── IdentityError      a direction, map or certificate of another model
├── ArtifactError      a file that is missing, damaged or not an isthmus artifact
├── OutputError        a place that cannot be written to
├── EngineError        a cluster that cannot be reached, or workers that were lost too often
├── IncompleteError    a reproduction in which parts failed; what was measured is written
├── NonFiniteError     NaN or infinity in activations or fits
├── FitError           too little data for a fit, or a fit that did not come out
└── NoEditError        an intervention that edited nothing

Messages say what was given, what was expected and what to do.
"""


class IsthmusError(Exception):
    """Base of every error that isthmus raises on purpose."""


class ConfigError(IsthmusError):
    """A configuration or an option cannot be carried out."""


class StrengthError(ConfigError):
    """A strength is not a finite number within its range."""


class DataError(IsthmusError):
    """Prompts are unreadable, empty, one-sided or repeated across splits."""


class TriggerError(DataError):
    """The tokenizers do not treat a trigger alike where that is needed."""


class ModelError(IsthmusError):
    """A model cannot be loaded or is not a decoder-only language model."""


class SiteError(ModelError):
    """The model does not have this site."""


class OrganismError(ModelError):
    """An organism is unknown, damaged or not competent."""


class ShapeError(IsthmusError):
    """Widths or shapes do not fit together."""


class IdentityError(IsthmusError):
    """A direction, a map or a certificate belongs to another model."""


class ArtifactError(IsthmusError):
    """A file is missing, damaged or not an isthmus artifact."""


class OutputError(IsthmusError):
    """A place cannot be written to."""


class EngineError(IsthmusError):
    """A cluster cannot be reached, or its workers were lost too often."""


class IncompleteError(IsthmusError):
    """Parts of a reproduction failed; what was measured is written."""


class NonFiniteError(IsthmusError):
    """Activations or a fit hold NaN or infinity."""


class FitError(IsthmusError):
    """A fit has too little data or did not come out."""


class NoEditError(IsthmusError):
    """An intervention edited nothing."""
