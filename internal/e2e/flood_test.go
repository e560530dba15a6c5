package e2e

import (
	"testing"
	"time"

	"wardgate/internal/lab"
)

// A flood of requests from addresses that nobody has: honest peers' connections come up on demand all
// the same, and the memory that strangers can take is bounded. What it costs is measured by `make flood`.
func TestFloodOfStrangers(t *testing.T) {
	l := newLab(t, "e2e-flood")
	const honest = 20
	r, err := l.Flooded(t.Context(), lab.FloodTrial{Rate: 8000, For: 5 * time.Second, Honest: honest})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d spoofed requests in %v, %d without room; in quiet %d up, median %v; under the flood %d up, median %v; resident %d, %d, %d MiB",
		r.Sent, r.Took, r.NoRoom, r.Quiet.Up, r.Quiet.Median(), r.Under.Up, r.Under.Median(), r.RSS[0]>>20, r.RSS[1]>>20, r.RSS[2]>>20)
	if r.Sent < 5000 {
		t.Errorf("%d spoofed requests were sent in %v; want at least 5000, or nothing was tried", r.Sent, r.Took)
	}
	if r.Quiet.Up != honest || r.Under.Up != honest {
		t.Errorf("of %d connections %d came up in quiet and %d under the flood; want all", honest, r.Quiet.Up, r.Under.Up)
	}
	// A half-open IKE SA costs some kilobytes, and there are never more than a few thousand.
	if grown := r.RSS[1] - r.RSS[0]; grown > 64<<20 {
		t.Errorf("the flooded router's resident memory grew by %d MiB; want at most 64", grown>>20)
	}
}
