// The forward kernel of the token log-probs for compute capability 10.x: the same, but with arithmetic of pairs.
#define PACKED_ARITHMETIC
#include "../token_log_prob.cu"
