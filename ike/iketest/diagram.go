package iketest

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// diagram is the sequence of a run as text: a line for each datagram with what is in it and what
// became of it, and for each thing that happens to a node.
type diagram struct{ b strings.Builder }

func newDiagram(p *Plan) *diagram {
	d := &diagram{}
	fmt.Fprintf(&d.b, "seed %d: %d nodes, link %+v\n", p.Seed, p.Nodes, p.Link)
	d.b.WriteString("  seconds  number\n")
	return d
}

func (d *diagram) String() string {
	if d == nil {
		return ""
	}
	return d.b.String()
}

func seconds(t time.Time) float64 { return t.Sub(Epoch).Seconds() }

func (d *diagram) note(now time.Time, text string) {
	fmt.Fprintf(&d.b, "%9.3f         * %s\n", seconds(now), text)
}

func (d *diagram) message(now time.Time, number int, inside, from, to netip.AddrPort, n, dest *simNode, what, lost string, arrive []time.Duration) {
	who := "?"
	if dest != nil {
		who = dest.Name
	}
	arrow := "-->"
	if lost != "" {
		arrow = "--x"
	}
	fmt.Fprintf(&d.b, "%9.3f #%-6d %s %s %s  %s", seconds(now), number, n.Name, arrow, who, what)
	if inside != from || from.Port() != 500 || to.Port() != 500 {
		fmt.Fprintf(&d.b, " %v>%v", from, to)
	}
	switch {
	case lost != "":
		fmt.Fprintf(&d.b, "  (%s)", lost)
	case len(arrive) == 2:
		fmt.Fprintf(&d.b, "  (arrives %.3f and %.3f)", seconds(now.Add(arrive[0])), seconds(now.Add(arrive[1])))
	default:
		fmt.Fprintf(&d.b, "  (arrives %.3f)", seconds(now.Add(arrive[0])))
	}
	d.b.WriteByte('\n')
}
