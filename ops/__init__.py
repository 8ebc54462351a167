"""The embedding store: a C++ library, TensorFlow kernels over it, and their Python surface."""
