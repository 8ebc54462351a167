// COVERS("emb:O18") on the line above a TEST: this test asserts the numbers of that vector of the specification.
// It compiles to nothing; `make conformance` reads it, and counts it when the test below it is compiled and enabled.
#pragma once

#define COVERS(...)
