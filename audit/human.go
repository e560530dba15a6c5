package audit

import (
	"fmt"
	"strings"
	"unicode"
)

// Human returns the record in one line for people: time, event, result, who, what, where, and the
// details in the order of their names. Text that others chose is quoted where it holds anything
// but printable characters.
func (r Record) Human() string {
	var b strings.Builder
	b.WriteString(r.Time.Local().Format("2006-01-02 15:04:05.000"))
	fmt.Fprintf(&b, "  %-18s %-8s", r.Event, r.Result)
	field := func(name, v string) {
		if v != "" {
			fmt.Fprintf(&b, "  %s %s", name, printable(v))
		}
	}
	field("what:", r.What)
	field("who:", r.Who)
	field("where:", r.Where)
	if len(r.Detail) > 0 {
		b.WriteString("  (")
		for i, k := range sortedKeys(r.Detail) {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%s: %s", printable(k), printable(r.Detail[k]))
		}
		b.WriteString(")")
	}
	return b.String()
}

func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) >= 0 {
		return fmt.Sprintf("%q", s)
	}
	return s
}
