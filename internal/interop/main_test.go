package interop

import (
	"flag"
	"os"
	"testing"
)

// TestMain has more tests run side by side than there are processors: what is parallel here waits for
// timers more than it computes.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
