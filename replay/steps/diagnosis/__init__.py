"""Why a step does not reproduce: causes that are tried on the step itself, likeliest first."""
