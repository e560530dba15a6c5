package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardgate/router/control"
)

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say who this router is, what is connected, and what needs attention",
		Long: "Say who this router is, which policy is in force, what is on the token, what is connected\n" +
			"with whom, what was refused and why, and what happened last. What needs attention comes first.",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := ask(c, cmd, func(d daemon, ctx context.Context) (*control.Status, error) { return d.Status(ctx) })
			if err != nil {
				return err
			}
			now := s.Now
			if now.IsZero() {
				now = c.now()
			}
			return c.answer(s, func(p *printer) { printStatus(p, s, now) })
		},
	}
}

func printStatus(p *printer, s *control.Status, now time.Time) {
	who := "This router has no identity yet: there is no device certificate"
	if s.DeviceID != "" {
		who = "This is the router " + p.style(bold, plain(s.DeviceID))
		if s.Facility != "" {
			who += " of " + plain(s.Facility)
		}
	}
	running := ""
	if !s.Started.IsZero() {
		running = fmt.Sprintf(", running since %s (for %s)", clock(now, s.Started), span(now.Sub(s.Started)))
	}
	p.line("%s. wardgated %s%s.", who, orUnknown(s.Version), running)

	if n := len(s.Warnings); n > 0 {
		head := "These need attention:"
		if n == 1 {
			head = "This needs attention:"
		}
		p.line("")
		p.line("%s", p.style(bold, head))
		for _, w := range s.Warnings {
			printWarning(p, w)
		}
	}

	p.line("")
	rows := [][]string{
		{p.style(bold, "Policy"), policyWords(&s.Policy, now)},
		{p.style(bold, "Token "), tokenWords(p, &s.Token)},
	}
	if s.Centre != nil {
		rows = append(rows, []string{p.style(bold, "Centre"), centreWords(s.Centre, now)})
	}
	p.table("", rows)
	printCertificates(p, s.Token.Certificates, now)

	p.line("")
	if len(s.Connections) == 0 {
		p.line("%s none: %s.", p.style(bold, "Connections:"), map[bool]string{true: "the policy names no partner", false: "no policy is in force"}[s.Policy.Installed])
	} else {
		p.line("%s %s", p.style(bold, "Connections:"), countStates(s.Connections))
		for i := range s.Connections {
			printConnection(p, &s.Connections[i], now)
		}
	}

	p.line("")
	printRefused(p, s.Refused, now)

	if len(s.Events) > 0 {
		p.line("")
		p.line("%s", p.style(bold, "Last events, newest first:"))
		printEvents(p, s.Events, now)
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "of an unknown version"
	}
	return plain(s)
}

func printWarning(p *printer, w control.Warning) {
	p.line("  ! %s (%s)", p.style(yellow, plain(w.Title)), plain(w.Code))
	if w.Text != "" {
		p.line("    %s", plain(w.Text))
	}
	if w.Hint != "" {
		p.line("    → %s", plain(w.Hint))
	}
}

func policyWords(s *control.PolicyStatus, now time.Time) string {
	if s.Error != nil {
		out := "none in force: " + plain(lowerFirst(s.Error.Title))
		if s.Error.Detail != "" {
			first, _, _ := strings.Cut(s.Error.Detail, "\n") // the rest: wardgate policy check
			out += ": " + plain(first)
		}
		if s.Error.Hint != "" {
			out += " → " + plain(s.Error.Hint)
		}
		return out
	}
	if !s.Installed {
		return "none in force → install the file that the service provider signed for this router: wardgate policy install FILE"
	}
	out := fmt.Sprintf("serial %d of %s, ", s.Serial, plain(s.Issuer))
	if now.After(s.NotAfter) {
		out += "expired "
	} else {
		out += "valid until "
	}
	out += until(now, s.NotAfter)
	if !s.InstalledAt.IsZero() {
		out += ", installed " + stamp(s.InstalledAt)
	}
	return out
}

func centreWords(s *control.CentreStatus, now time.Time) string {
	if s.URL == "" {
		return "not joined → wardgate join URL"
	}
	out := plain(s.URL)
	if s.Heard.IsZero() {
		out += ", not heard of since the start"
	} else {
		out += ", heard of " + clock(now, s.Heard)
	}
	if !s.Renewal.IsZero() {
		out += ", next certificate " + until(now, s.Renewal)
	}
	return out
}

func tokenWords(p *printer, t *control.TokenStatus) string {
	words := map[string]string{
		control.TokenReady:      "ready",
		control.TokenStarting:   "starting",
		control.TokenRemoved:    "not there",
		control.TokenPINRefused: "refuses the PIN",
		control.TokenFailed:     "does not work",
	}[t.State]
	switch {
	case words == "" && t.State == "":
		words = "unknown"
	case words == "":
		words = plain(t.State)
	}
	if t.State != control.TokenReady && t.State != control.TokenStarting {
		words = p.style(red, words)
	}
	if t.Label != "" {
		words += fmt.Sprintf(", named %q", t.Label)
	}
	if t.Error != nil {
		why := t.Error.Detail
		if why == "" {
			why = lowerFirst(t.Error.Title)
		}
		words += ": " + plain(why)
		if t.Error.Hint != "" {
			words += " → " + plain(t.Error.Hint)
		}
	}
	return words
}

func printCertificates(p *printer, list []control.Certificate, now time.Time) {
	var rows [][]string
	for _, x := range list {
		what := "device certificate"
		if x.Layer == 2 {
			what = "service " + plain(x.Service)
		}
		valid := "valid until " + until(now, x.NotAfter)
		switch {
		case now.After(x.NotAfter):
			valid = p.style(red, "expired") + " " + until(now, x.NotAfter)
		case now.Before(x.NotBefore):
			valid = p.style(red, "not valid before") + " " + until(now, x.NotBefore)
		case x.Error != "":
			valid = p.style(red, "cannot be used") + ": " + plain(x.Error)
		}
		rows = append(rows, []string{what, plain(x.Subject), "from " + plain(x.Issuer), valid})
	}
	p.table("        ", rows)
}

// countStates is "5: 2 up, 2 idle, 1 failed".
func countStates(list []control.Connection) string {
	n := map[string]int{}
	for i := range list {
		n[list[i].State]++
	}
	var parts []string
	for _, s := range []string{control.ConnUp, control.ConnConnecting, control.ConnClosing, control.ConnIdle, control.ConnFailed} {
		if n[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[s], s))
			delete(n, s)
		}
	}
	for _, k := range n {
		parts = append(parts, fmt.Sprintf("%d in a state that this program does not know", k))
	}
	return strings.Join(parts, ", ")
}

func printRefused(p *printer, list []control.Refused, now time.Time) {
	if len(list) == 0 {
		p.line("%s nothing.", p.style(bold, "Refused since the start:"))
		return
	}
	p.line("%s", p.style(bold, "Refused since the start:"))
	rows := make([][]string, len(list))
	for i, r := range list {
		text := fmt.Sprintf("%s (%s: %s)", refusedWords(r.Reason, r.Text), plain(r.Where), plain(r.Reason))
		var more []string
		if !r.Last.IsZero() {
			more = append(more, "last "+clock(now, r.Last))
		}
		if r.Example != "" {
			more = append(more, "such as "+plain(r.Example))
		}
		if len(more) > 0 {
			text += "; " + strings.Join(more, ", ")
		}
		rows[i] = []string{fmt.Sprintf("%6d ×", r.Packets), text}
	}
	p.table("", rows)
}

func printEvents(p *printer, list []control.AuditRecord, now time.Time) {
	rows := make([][]string, len(list))
	for i := range list {
		e := &list[i]
		at := e.Time.Local().Format("15:04:05")
		if now.Local().Format(time.DateOnly) != e.Time.Local().Format(time.DateOnly) {
			at = e.Time.Local().Format("2006-01-02 15:04:05")
		}
		rows[i] = []string{at, eventWords(e.Event), eventFacts(e)}
	}
	p.table("  ", rows)
}

// eventFacts is who, what, where and why of an event, in the order that reads well.
func eventFacts(e *control.AuditRecord) string {
	var parts []string
	if e.What != "" {
		parts = append(parts, plain(e.What))
	}
	if e.Who != "" {
		by := "by "
		if strings.HasPrefix(e.Event, "connection-") {
			by = "with "
		}
		parts = append(parts, by+plain(e.Who))
	}
	if e.Where != "" {
		parts = append(parts, "at "+plain(e.Where))
	}
	if n := e.Detail["count"]; n != "" && n != "1" {
		parts = append(parts, plain(n)+" ×")
	}
	for _, k := range []string{"text", "error", "reason", "detail"} {
		v := e.Detail[k]
		if v == "" {
			continue
		}
		if words := refusedText[v]; k == "reason" && words != "" {
			v = words
		}
		parts = append(parts, plain(v))
		break
	}
	return strings.Join(parts, ", ")
}
