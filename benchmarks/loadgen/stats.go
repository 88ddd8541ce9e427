package main

import (
	"math"
	"slices"
	"time"
)

// samples are latencies of one device, in the order they were seen. Not safe for concurrent use: each device has its own, and
// they are joined when the run is over.
type samples []uint32 // microseconds

// add keeps a latency; beyond 71 minutes it is cut to that.
func (s *samples) add(latency time.Duration) {
	*s = append(*s, uint32(min(max(latency.Microseconds(), 0), math.MaxUint32)))
}

// join returns all samples of the parts, sorted.
func join(parts ...samples) samples {
	all := slices.Concat(parts...)
	slices.Sort(all)
	return all
}

// percentileMs returns the smallest sample that at least the given share (0 to 1) of the samples does not exceed, in
// milliseconds: the nearest-rank method. The samples must be sorted; of none it is nil.
func (s samples) percentileMs(share float64) *float64 {
	if len(s) == 0 {
		return nil
	}
	rank := int(math.Ceil(share * float64(len(s))))
	ms := float64(s[min(max(rank, 1), len(s))-1]) / 1000
	return &ms
}
