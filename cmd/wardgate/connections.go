package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardgate/router/control"
)

func (c *cli) connectionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "connections",
		Short: "List the connections of the policy in force",
		Long: "List the connections of the policy in force: with whom, for which service, their state and\n" +
			"traffic, in one line each. `wardgate status` says more about each.",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, ctx, cancel, err := c.daemon(cmd)
			if err != nil {
				return err
			}
			defer cancel()
			list, err := d.Connections(ctx)
			if err != nil {
				return err
			}
			if list == nil {
				list = []control.Connection{} // [] in JSON
			}
			return c.answer(list, func(p *printer) { printConnections(p, list, c.now()) })
		},
	}
}

func printConnections(p *printer, list []control.Connection, now time.Time) {
	if len(list) == 0 {
		p.line("There are no connections: no policy is in force, or it names no partner. See: wardgate status")
		return
	}
	rows := [][]string{{"NAME", "PARTNER", "SERVICE", "STARTS", "STATE", "RECEIVED", "SENT", "PARTNER'S ADDRESS"}}
	for i := range list {
		x := &list[i]
		state := plain(x.State)
		if !x.Since.IsZero() && (x.State == control.ConnUp || x.State == control.ConnFailed) {
			state += " for " + span(now.Sub(x.Since))
		}
		rows = append(rows, []string{plain(x.Name), plain(x.Peer), plain(x.Service), plain(x.Start), state, size(x.Traffic.BytesIn), size(x.Traffic.BytesOut), plain(x.Gateway)})
	}
	p.table("", rows)
}

// printConnection writes one connection in full: who, state in words, and facts where it is up.
func printConnection(p *printer, x *control.Connection, now time.Time) {
	p.line("  %s → %s, service %s", p.style(bold, plain(x.Name)), plain(x.Peer), plain(x.Service))
	p.line("    %s", stateWords(p, x, now))
	if hint := failureOf(x); hint != nil && hint.Hint != "" {
		p.line("    → %s", plain(hint.Hint))
	}
	if x.State != control.ConnUp {
		return
	}
	var facts []string
	if len(x.RemoteIDs) > 0 {
		facts = append(facts, "with "+plainAll(x.RemoteIDs, " + "))
	}
	if x.Gateway != "" {
		at := "at " + plain(x.Gateway)
		switch {
		case x.TCP:
			at += " (in TCP: UDP does not get through, or is not to be used)"
		case x.Encap:
			at += " (in UDP)"
		}
		facts = append(facts, at)
	}
	switch {
	case x.Suite != "" && x.ESPSuite != "":
		facts = append(facts, "encrypted with "+plain(x.ESPSuite)+" (keys: "+plain(x.Suite)+")")
	case x.Suite+x.ESPSuite != "":
		facts = append(facts, "encrypted with "+plain(x.Suite+x.ESPSuite))
	}
	if len(facts) > 0 {
		p.line("    %s", strings.Join(facts, ", "))
	}
	if d := idleIn(x, now); d != "" {
		p.line("    %s", d)
	}
}

// failureOf is the failure that the state is about, or nil.
func failureOf(x *control.Connection) *control.Error {
	if x.State == control.ConnUp {
		return nil // it healed
	}
	return x.LastError
}

// stateWords says in words what a connection does.
func stateWords(p *printer, x *control.Connection, now time.Time) string {
	waiting := ""
	if x.HeldPackets > 0 {
		waiting = ", " + plural(x.HeldPackets, "packet") + " waiting"
	}
	switch x.State {
	case control.ConnUp:
		s := p.style(green, "up")
		if !x.Since.IsZero() {
			s += fmt.Sprintf(" since %s (for %s)", clock(now, x.Since), span(now.Sub(x.Since)))
		}
		s += fmt.Sprintf(", %s received, %s sent", size(x.Traffic.BytesIn), size(x.Traffic.BytesOut))
		if d, err := time.ParseDuration(x.SetupTime); err == nil {
			s += ", set up in " + span(d)
		}
		if n := x.Traffic.DroppedIn + x.Traffic.DroppedOut; n > 0 {
			s += ", " + plural(n, "packet") + " dropped"
		}
		return s
	case control.ConnConnecting:
		s := p.style(yellow, "connecting")
		if !x.Since.IsZero() {
			s += " for " + span(now.Sub(x.Since))
		}
		return s + waiting + lastFailure(x, now)
	case control.ConnClosing:
		return p.style(yellow, "ending")
	case control.ConnFailed:
		return p.style(red, "failed") + failure(x, now) + waiting
	case control.ConnIdle:
		switch x.Start {
		case "manual":
			return "off — start it with: wardgate up " + plain(x.Name) + lastFailure(x, now)
		case "always":
			return "down — comes up again by itself" + lastFailure(x, now)
		}
		return "idle — comes up with the first packet" + lastFailure(x, now)
	}
	return plain(x.State)
}

// failure is " 2 min ago: text".
func failure(x *control.Connection, now time.Time) string {
	s := ""
	switch {
	case !x.LastErrorAt.IsZero():
		s = " " + ago(now, x.LastErrorAt)
	case !x.Since.IsZero():
		s = " " + ago(now, x.Since)
	}
	if e := x.LastError; e != nil {
		why := e.Detail
		if why == "" {
			why = e.Title
		}
		s += ": " + plain(why)
	}
	return s
}

func lastFailure(x *control.Connection, now time.Time) string {
	if x.LastError == nil {
		return ""
	}
	return "; the last attempt failed" + failure(x, now)
}

// idleIn says when an unused connection ends by itself.
func idleIn(x *control.Connection, now time.Time) string {
	d, err := time.ParseDuration(x.IdleAfter)
	if err != nil || d <= 0 || x.Start == "always" {
		return ""
	}
	if x.LastTraffic.IsZero() {
		return "ends by itself after " + span(d) + " without traffic"
	}
	left := d - now.Sub(x.LastTraffic)
	if left <= 0 {
		return "ends by itself any moment: no traffic since " + clock(now, x.LastTraffic)
	}
	return fmt.Sprintf("last traffic %s; ends by itself in %s without more", ago(now, x.LastTraffic), span(left))
}
