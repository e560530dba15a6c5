package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"wardgate/router/control"
)

func (c *cli) explainCommand() *cobra.Command {
	var (
		from, to, protocol string
		port, fromPort     uint16
		icmpType, icmpCode uint8
	)
	cmd := &cobra.Command{
		Use:   "explain --from ADDRESS --to ADDRESS --protocol PROTOCOL [--port N]",
		Short: "Say whether the policy allows a flow, and why",
		Long: "Say whether the policy in force allows the first packet of a flow, and why. Answers to a flow\n" +
			"that is allowed are allowed by themselves. The exit status is 0 when it is allowed and 3 when\n" +
			"not. For icmp and icmpv6, an echo request (ping) is asked about unless --icmp-type says another.",
		Example: "  wardgate explain --from 10.2.1.9 --to 10.1.2.10 --protocol tcp --port 104",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			flow := control.Flow{Protocol: strings.ToLower(protocol), FromPort: fromPort, ToPort: port}
			var err error
			if flow.From, err = address("--from", from); err != nil {
				return err
			}
			if flow.To, err = address("--to", to); err != nil {
				return err
			}
			changed := cmd.Flags().Changed
			icmp := flow.Protocol == "icmp" || flow.Protocol == "icmpv6"
			ports := flow.Protocol == "tcp" || flow.Protocol == "udp"
			switch {
			case ports && !changed("port"):
				return badUsage("for example --port 104", "--port: expected the port that the flow goes to, came nothing")
			case icmp && (changed("port") || changed("from-port")):
				return badUsage("use --icmp-type and --icmp-code", "--port: %s has no ports", flow.Protocol)
			case !icmp && (changed("icmp-type") || changed("icmp-code")):
				return badUsage("use --protocol icmp or icmpv6", "--icmp-type, --icmp-code: protocol %q has none", flow.Protocol)
			}
			if icmp {
				if !changed("icmp-type") {
					icmpType = 8 // echo request: RFC 792
					if flow.Protocol == "icmpv6" {
						icmpType = 128 // RFC 4443, section 4.1
					}
				}
				flow.ToPort = uint16(icmpType)<<8 | uint16(icmpCode)
			}
			if err := flow.Check(); err != nil {
				return err
			}
			e, err := ask(c, cmd, func(d daemon, ctx context.Context) (*control.Explanation, error) { return d.Explain(ctx, flow) })
			if err != nil {
				return err
			}
			if err := c.answer(e, func(p *printer) { printExplanation(p, e, flow) }); err != nil {
				return err
			}
			if !e.Allow {
				return silent(exitRefused)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "`address` of the host that opens the flow")
	f.StringVar(&to, "to", "", "`address` of the host that it goes to")
	f.StringVar(&protocol, "protocol", "", "`protocol`: tcp, udp, icmp, icmpv6, any or a number")
	f.Uint16Var(&port, "port", 0, "`port` that it goes to (tcp, udp)")
	f.Uint16Var(&fromPort, "from-port", 0, "`port` that it comes from, where it matters")
	f.Uint8Var(&icmpType, "icmp-type", 0, "`type` of the message (icmp, icmpv6; default echo request)")
	f.Uint8Var(&icmpCode, "icmp-code", 0, "`code` of the message (icmp, icmpv6)")
	for _, name := range []string{"from", "to", "protocol"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is made three lines above
		}
	}
	return cmd
}

func address(flag, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, badUsage("names of hosts are not looked up: the policy knows addresses only", "%s: expected an IPv4 or IPv6 address, came %q", flag, s)
	}
	return a, nil
}

func printExplanation(p *printer, e *control.Explanation, flow control.Flow) {
	verdict := p.style(red, "DENIED")
	switch {
	case e.Allow:
		verdict = p.style(green, "ALLOWED")
	case e.Reason == "reply" || e.Reason == "related":
		verdict = p.style(yellow, "ONLY AS AN ANSWER")
	}
	reason := ""
	if e.Reason != "allowed" {
		reason = " (" + plain(e.Reason) + ")"
	}
	p.line("%s: %s%s", verdict, flowWords(flow), reason)
	for _, s := range e.Text {
		for line := range strings.Lines(s) {
			p.line("  %s", plain(upperFirst(strings.TrimSpace(line))))
		}
	}
	var facts [][]string
	fact := func(name, v string) {
		if v != "" {
			facts = append(facts, []string{name, plain(v)})
		}
	}
	fact("from zone", e.FromZone)
	fact("to zone", e.ToZone)
	fact("connection", e.Connection)
	fact("its state", e.State)
	fact("rule", e.Rule)
	if len(facts) > 0 {
		p.line("")
		p.table("  ", facts)
	}
}

// flowWords is "tcp from 10.2.1.9 to 10.1.2.10, port 104".
func flowWords(f control.Flow) string {
	s := fmt.Sprintf("%s from %v to %v", plain(f.Protocol), f.From, f.To)
	switch f.Protocol {
	case "icmp", "icmpv6":
		s += fmt.Sprintf(", type %d", f.ToPort>>8)
		if echo := f.ToPort>>8 == 8 && f.Protocol == "icmp" || f.ToPort>>8 == 128 && f.Protocol == "icmpv6"; echo {
			s += " (echo request)"
		}
	default:
		if f.ToPort != 0 {
			s += fmt.Sprintf(", port %d", f.ToPort)
		}
	}
	return s
}
