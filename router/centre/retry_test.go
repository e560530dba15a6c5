package centre

import (
	"net/http"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text, date string
		want       time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{"10", "", 10 * time.Second},
		{"3600", "", time.Hour},
		{"3601", "", time.Hour},
		{"18446744073709551616", "", time.Hour},
		{"99999999999999999999999999999999", "", time.Hour},
		{"-1", "", 0},
		{"1.5", "", 0},
		{"soon", "", 0},
		{"Sun, 22 Nov 2026 10:00:30 GMT", "Sun, 22 Nov 2026 10:00:00 GMT", 30 * time.Second},
		{"Sun, 22 Nov 2026 10:00:00 GMT", "Sun, 22 Nov 2026 10:00:30 GMT", 0},
		{"Fri, 31 Dec 9999 23:59:59 GMT", "Sun, 22 Nov 2026 10:00:00 GMT", time.Hour},
		{"Sun, 22 Nov 2026 10:00:30 GMT", "", 0},
	} {
		if got := retryOf(http.Header{"Retry-After": {c.text}, "Date": {c.date}}); got != c.want {
			t.Errorf("%q at %q: %v, want %v", c.text, c.date, got, c.want)
		}
	}
}
