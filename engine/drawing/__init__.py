"""Pictures of what a model sees, makes and finds: sheets for `omnitrunk show`, for samples/ and for TensorBoard."""
