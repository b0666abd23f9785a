"""Public data sets into nnU-Net raw format; the floor on which `nnunet_order` and `law_synth` stand."""
