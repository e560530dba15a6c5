package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardgate/internal/certs"
	"wardgate/policy"
	"wardgate/router/control"
)

// maxPolicyFile bounds what is read as a policy file, octets: what the daemon takes.
const maxPolicyFile = 33 << 20

func (c *cli) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Check and install policy files"}
	cmd.AddCommand(c.policyCheckCommand(), c.policyInstallCommand())
	return cmd
}

func (c *cli) policyCheckCommand() *cobra.Command {
	var (
		offline       bool
		anchors, crls []string
		device        string
	)
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a policy file without installing it",
		Long: "Check a policy file without installing it: signature, device, serial, validity, contents and\n" +
			"the tests in it, and say what it would change. FILE - is standard input. With --offline no\n" +
			"daemon is asked, but then nobody knows which serial is installed.",
		Args: exactly("the FILE of a policy"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !offline {
				for _, f := range []string{"anchors", "crls", "device-cert"} {
					if cmd.Flags().Changed(f) {
						return badUsage("add --offline", "--%s: the daemon has its own", f)
					}
				}
			} else if len(anchors) == 0 || device == "" {
				return badUsage("for example --anchors policy-ca.pem --device-cert device.pem", "--offline: expected --anchors and --device-cert with it")
			}
			jws, err := c.readPolicy(args[0])
			if err != nil {
				return err
			}
			var rep *control.PolicyReport
			if offline {
				rep, err = checkOffline(jws, anchors, crls, device, c.now())
			} else {
				rep, err = ask(c, cmd, func(d daemon, ctx context.Context) (*control.PolicyReport, error) { return d.PolicyCheck(ctx, jws) })
			}
			if err != nil {
				return err
			}
			return c.answer(rep, func(p *printer) { printPolicy(p, rep, offline, c.now()) })
		},
	}
	f := cmd.Flags()
	f.BoolVar(&offline, "offline", false, "ask no daemon")
	f.StringArrayVar(&anchors, "anchors", nil, "with --offline: `file` with the anchors of policy signers, PEM (may be repeated)")
	f.StringArrayVar(&crls, "crls", nil, "with --offline: `file` with revocation lists, PEM (may be repeated)")
	f.StringVar(&device, "device-cert", "", "with --offline: `file` with the device certificate, PEM or DER")
	return cmd
}

func (c *cli) policyInstallCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "install FILE",
		Short: "Check a policy file and put it in force",
		Long: "Check a policy file and put it in force. A file that fails a check changes nothing. Only\n" +
			"connections whose rights the new policy changes are ended. FILE - is standard input.",
		Args: exactly("the FILE of a policy"),
		RunE: func(cmd *cobra.Command, args []string) error {
			jws, err := c.readPolicy(args[0])
			if err != nil {
				return err
			}
			rep, err := ask(c, cmd, func(d daemon, ctx context.Context) (*control.PolicyReport, error) { return d.PolicyInstall(ctx, jws) })
			if err != nil {
				return err
			}
			return c.answer(rep, func(p *printer) { printPolicy(p, rep, false, c.now()) })
		},
	}
}

// readPolicy reads a policy file, or standard input for "-".
func (c *cli) readPolicy(name string) ([]byte, error) {
	var b []byte
	var err error
	if name == "-" {
		name = "standard input"
		b, err = io.ReadAll(io.LimitReader(c.in, maxPolicyFile+1))
	} else {
		b, err = readFile(name, maxPolicyFile)
	}
	switch {
	case err != nil:
		return nil, fileFailed(name, err)
	case len(b) > maxPolicyFile:
		return nil, failed(control.KindTooLarge, "too-large", fmt.Sprintf("%s is too large for a policy file: expected at most %d bytes", name, maxPolicyFile), "check that this is the right file", nil)
	case len(b) == 0:
		return nil, failed(control.KindRefused, "policy-format", name+" is empty: expected a policy file", "check that this is the right file", nil)
	}
	return b, nil
}

// readFile reads at most limit+1 octets of a file.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// checkOffline does what the daemon does, with files in place of what the daemon knows.
func checkOffline(jws []byte, anchors, crls []string, device string, now time.Time) (*control.PolicyReport, error) {
	opt := policy.VerifyOptions{Now: now}
	for _, name := range anchors {
		list, err := parseFile(name, certs.ParseCertificates)
		if err != nil {
			return nil, err
		}
		opt.Anchors = append(opt.Anchors, list...)
	}
	for _, name := range crls {
		list, err := parseFile(name, certs.ParseCRLs)
		if err != nil {
			return nil, err
		}
		opt.CRLs = append(opt.CRLs, list...)
	}
	leaf, err := parseFile(device, certs.ParseCertificates) // leaf first, as everywhere
	if err != nil {
		return nil, err
	}
	opt.DeviceCertDER = leaf[0].Raw
	doc, err := policy.Verify(jws, opt)
	if err != nil {
		return nil, policyRefused(err)
	}
	return &control.PolicyReport{
		Issuer: doc.Issuer, Device: doc.Device.ID, Serial: doc.Serial, NotBefore: doc.NotBefore, NotAfter: doc.NotAfter,
		Connections: len(doc.Connections), Flows: len(doc.Table().Rules()), Tests: len(doc.Tests),
		Warnings: []control.Warning{{
			Code: "serial-not-compared", Title: "The serial was not compared with the installed policy",
			Text: "only the daemon knows which policy is installed", Hint: "without --offline the daemon is asked",
		}},
	}, nil
}

// policyRefused takes what to do about it out of the text, for the hint.
func policyRefused(err error) error {
	e := &control.Error{Kind: control.KindRefused, Code: policy.Code(err), Title: "The policy is refused", Detail: err.Error(), Hint: "ask the service provider for a correct file"}
	if r := (*policy.RefusedError)(nil); errors.As(err, &r) && r.Do != "" {
		e.Detail, e.Hint = strings.TrimSuffix(e.Detail, "; "+r.Do), r.Do
	}
	return e
}

func parseFile[T *x509.Certificate | *x509.RevocationList](name string, parse func([]byte) ([]T, error)) ([]T, error) {
	b, err := readFile(name, maxPolicyFile)
	if err != nil {
		return nil, fileFailed(name, err)
	}
	list, err := parse(b)
	if err != nil {
		return nil, failed(control.KindInternal, "certificate-file", name+" cannot be used", "check that this is the right file", err)
	}
	return list, nil
}

func printPolicy(p *printer, r *control.PolicyReport, offline bool, now time.Time) {
	verb := "is in order"
	if r.Installed {
		verb = "is installed and in force"
	}
	p.line("Policy serial %d of %s for %s %s.", r.Serial, plain(r.Issuer), plain(r.Device), p.style(green, verb))
	p.line("  Valid from %s until %s.", stamp(r.NotBefore), until(now, r.NotAfter))
	tests := "it brings no tests"
	if r.Tests > 0 {
		tests = map[bool]string{true: "its 1 test passes", false: fmt.Sprintf("its %d tests pass", r.Tests)}[r.Tests == 1]
	}
	p.line("  It has %s with %s; %s.", plural(r.Connections, "connection"), plural(r.Flows, "flow"), tests)
	if !offline {
		var changes []string
		for _, x := range []struct {
			what  string
			names []string
		}{{"new", r.Added}, {"gone", r.Removed}, {"changed", r.Changed}} {
			if len(x.names) > 0 {
				changes = append(changes, x.what+": "+plainAll(x.names, ", "))
			}
		}
		text := "none"
		if len(changes) > 0 {
			text = strings.Join(changes, "; ")
		}
		p.line("  Connections that change against the policy before: %s.", text)
	}
	if !r.Installed {
		p.line("  Nothing was installed.")
	}
	for _, w := range r.Warnings {
		printWarning(p, w)
	}
}
