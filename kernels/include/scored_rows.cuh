// What stands in the list of scored rows, and in the rows' positions in it, where there is no row or no position.
#pragma once

#include <cstdint>

constexpr int32_t MASKED = -1;
// Scored, but past the `capacity` first: the caller's bound was too small. Or withheld: linear_withhold_rows.
constexpr int32_t UNPLACED = -2;
