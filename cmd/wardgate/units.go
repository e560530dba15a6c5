package main

import (
	"fmt"
	"strings"
	"time"
)

// size writes octets as people do: "nothing", "812 bytes", "11.3 MB" (decimal units).
func size(n uint64) string {
	switch {
	case n == 0:
		return "nothing"
	case n == 1:
		return "1 byte"
	case n < 1000:
		return fmt.Sprintf("%d bytes", n)
	}
	v := float64(n)
	for _, u := range []string{"kB", "MB", "GB", "TB", "PB"} {
		if v /= 1000; v < 999.95 {
			return fmt.Sprintf("%.1f %s", v, u)
		}
	}
	return fmt.Sprintf("%.1f EB", v/1000)
}

// span writes a length of time with the two units that matter: "31 ms", "42 s", "3 h 4 min",
// "8 days 11 h".
func span(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	two := func(big, small int64, bigUnit, smallUnit string) string {
		if small == 0 {
			return fmt.Sprintf("%d %s", big, bigUnit)
		}
		return fmt.Sprintf("%d %s %d %s", big, bigUnit, small, smallUnit)
	}
	const day = 24 * time.Hour
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	case d < 10*time.Second:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", int64(d.Seconds()))
	case d < 10*time.Minute:
		return two(int64(d/time.Minute), int64(d%time.Minute/time.Second), "min", "s")
	case d < time.Hour:
		return fmt.Sprintf("%d min", int64(d.Minutes()))
	case d < day:
		return two(int64(d/time.Hour), int64(d%time.Hour/time.Minute), "h", "min")
	case d < 2*day:
		return two(1, int64(d%day/time.Hour), "day", "h")
	case d < 30*day:
		return two(int64(d/day), int64(d%day/time.Hour), "days", "h")
	}
	return fmt.Sprintf("%d days", int64(d/day))
}

// ago writes how long ago something was.
func ago(now, t time.Time) string {
	if now.Sub(t) < time.Second {
		return "just now"
	}
	return span(now.Sub(t)) + " ago"
}

// until writes a time that something lasts until, and how long that is from now.
func until(now, t time.Time) string {
	s := stamp(t)
	if t.Before(now) {
		return s + " (" + ago(now, t) + ")"
	}
	return s + " (in " + span(t.Sub(now)) + ")"
}

// stamp is a point in time, in the machine's time zone.
func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

// clock is a point in time on a day near now: the date only when it is another one.
func clock(now, t time.Time) string {
	if now.Local().Format(time.DateOnly) == t.Local().Format(time.DateOnly) {
		return t.Local().Format("15:04")
	}
	return stamp(t)
}
