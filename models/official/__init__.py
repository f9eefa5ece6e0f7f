"""The models as their authors released them: for each system the names, shapes and order of its tensors."""
