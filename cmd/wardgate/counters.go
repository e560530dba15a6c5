package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"wardgate/router/control"
)

func (c *cli) countersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "counters",
		Short: "Show everything that is counted",
		Long: "Show everything that is counted since the daemon started. Packets and bytes are those inside\n" +
			"the tunnels.",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := ask(c, cmd, func(d daemon, ctx context.Context) (*control.Counters, error) { return d.Counters(ctx) })
			if err != nil {
				return err
			}
			return c.answer(n, func(p *printer) { printCounters(p, n) })
		},
	}
}

func printCounters(p *printer, n *control.Counters) {
	rows := [][]string{{"CONNECTION", "PACKETS IN", "BYTES IN", "DROPPED IN", "PACKETS OUT", "BYTES OUT", "DROPPED OUT"}}
	row := func(name string, t control.Traffic) {
		r := []string{name}
		for _, v := range []uint64{t.PacketsIn, t.BytesIn, t.DroppedIn, t.PacketsOut, t.BytesOut, t.DroppedOut} {
			r = append(r, fmt.Sprint(v))
		}
		rows = append(rows, r)
	}
	for _, name := range slices.Sorted(maps.Keys(n.Connections)) {
		row(plain(name), n.Connections[name])
	}
	row("all", n.Traffic)
	p.table("", rows)
	if len(n.Refused) > 0 {
		p.line("")
		rows = [][]string{{"REFUSED BY", "REASON", "PACKETS", "BYTES"}}
		for _, r := range n.Refused {
			rows = append(rows, []string{plain(r.Where), plain(r.Reason), fmt.Sprint(r.Packets), fmt.Sprint(r.Bytes)})
		}
		p.table("", rows)
	}
	if len(n.Queues) > 0 {
		p.line("")
		rows = [][]string{{"QUEUE", "PACKETS IN", "BYTES IN", "PACKETS OUT", "BYTES OUT", "ROUNDS", "DROPPED"}}
		for _, q := range n.Queues {
			var dropped uint64
			for _, d := range q.Dropped {
				dropped += d
			}
			r := []string{}
			for _, v := range []uint64{uint64(q.Queue), q.PacketsIn, q.BytesIn, q.PacketsOut, q.BytesOut, q.Rounds, dropped} {
				r = append(r, fmt.Sprint(v))
			}
			rows = append(rows, r)
		}
		p.table("", rows)
	}
	if len(n.Other) > 0 {
		p.line("")
		rows = [][]string{{"COUNTER", "VALUE"}}
		for _, name := range slices.Sorted(maps.Keys(n.Other)) {
			rows = append(rows, []string{plain(name), fmt.Sprint(n.Other[name])})
		}
		p.table("", rows)
	}
}
