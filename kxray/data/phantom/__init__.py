from kxray.data.phantom.film import CALIBRES, FINDINGS, VIEWS, Mix, Phantom, fillet, thorax, write_phantoms

__all__ = ["CALIBRES", "FINDINGS", "VIEWS", "Mix", "Phantom", "fillet", "thorax", "write_phantoms"]
