from kxray.data.phantom.film import CALIBRES, FINDINGS, VIEWS, Phantom, fillet, thorax
from kxray.data.phantom.mix import Mix
from kxray.data.phantom.series import write_phantoms

__all__ = ["CALIBRES", "FINDINGS", "VIEWS", "Mix", "Phantom", "fillet", "thorax", "write_phantoms"]
