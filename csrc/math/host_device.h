// SPDX-License-Identifier: Apache-2.0
// Marks formulas that host and device share. No torch headers in this folder.
#pragma once

#ifdef __CUDACC__
#define RLKERN_HD __host__ __device__ inline
#elif defined(RLKERN_ISA)
// A copy out of line would be one symbol in the objects of several instruction sets.
#define RLKERN_HD inline __attribute__((always_inline))
#else
#define RLKERN_HD inline
#endif
