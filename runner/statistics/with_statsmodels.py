"""The same models by statsmodels' MixedLM, as an independent check. Its matrices are dense: small tables only."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy
from numpy import ndarray

from runner.errors import UserError
from runner.statistics.mixed_model import MixedFit

LARGEST = 3000  # rows with crossed factors, whose covariance matrix is rows x rows


def fit_with_statsmodels(
    scores: ndarray, design: ndarray, factors: Mapping[str, ndarray], *, restricted: bool
) -> MixedFit:
    """See ``runner.statistics.mixed_model.fit``. Raises UserError: not installed, too many rows, no convergence."""
    try:
        from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec
    except ModuleNotFoundError:
        raise UserError(
            "engine=statsmodels needs statsmodels, which is not installed: pip install 'paper-runner[statistics]'"
        ) from None

    levels = {name: int(codes.max()) + 1 for name, codes in factors.items()}
    if len(factors) == 1:
        model = MixedLM(scores, design, groups=next(iter(factors.values())))
    else:
        if len(scores) > LARGEST:
            raise UserError(
                f"engine=statsmodels: {len(scores)} rows with crossed factors are too many for its dense matrices "
                f"(limit {LARGEST}); engine=auto has no limit"
            )
        indicators = [(codes[:, None] == numpy.arange(levels[name])) * 1.0 for name, codes in factors.items()]
        columns = [[[f"{name}[{level}]" for level in range(levels[name])]] for name in factors]
        spec = VCSpec(list(factors), columns, [[matrix] for matrix in indicators])
        # Without exog_re statsmodels would add an intercept of the one group, which the data cannot tell.
        model = MixedLM(scores, design, groups=numpy.zeros(len(scores)), exog_vc=spec, use_sqrt=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the boundary; a singular fit is reported by ``MixedFit.singular``
        found = model.fit(reml=restricted, method=["lbfgs", "bfgs", "powell"])
    if not numpy.isfinite(found.llf):
        raise UserError("engine=statsmodels: the fit did not converge; engine=auto searches the same likelihood")
    components = found.cov_re.ravel() if len(factors) == 1 else found.vcomp
    variances = dict(zip(factors, (max(float(item), 0.0) for item in components), strict=True))
    return MixedFit(
        coefficients=numpy.asarray(found.fe_params),
        covariance=numpy.asarray(found.cov_params())[: design.shape[1], : design.shape[1]],
        variances={name: 0.0 if value < 1e-8 * found.scale else value for name, value in variances.items()},
        residual=float(found.scale),
        log_likelihood=float(found.llf),
        restricted=restricted,
        observations=len(scores),
        levels=levels,
        estimation="statsmodels",
    )
