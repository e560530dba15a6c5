package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
)

// labCACommand is `wardgate-lab ca`: the issuing authority of laboratories and tests. It is not
// part of a shipped program: keys of CAs have no business on a hospital's router.
func labCACommand() *cobra.Command {
	x := &labCA{}
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Issuing authority for laboratories: device CA, service CAs, policy signers' CA",
		Long: "Keeps authorities in a folder (--dir): device/, policy/ and services/NAME/, each with a root, an\n" +
			"issuing CA, their keys in files, and a record of what was issued. Profiles: docs/pki.md.",
	}
	f := cmd.PersistentFlags()
	f.StringVar(&x.dir, "dir", "lab-ca", "folder of the authorities")
	f.StringVar(&x.at, "at", "", "the time to work at, RFC 3339; default: now")
	f.BoolVar(&x.json, "json", false, "print JSON")
	cmd.AddCommand(x.initCommand(), x.issueCommand(labca.Device), x.issueCommand(labca.Service), x.issueCommand(labca.Policy),
		x.revokeCommand(), x.crlCommand(), x.listCommand(), x.signPolicyCommand())
	return cmd
}

type labCA struct {
	dir, at string
	json    bool
}

func (x *labCA) now() (time.Time, error) {
	if x.at == "" {
		return time.Now(), nil
	}
	t, err := time.Parse(time.RFC3339, x.at)
	if err != nil {
		return t, fmt.Errorf("%w: --at: expected a time such as 2026-11-22T10:00:00Z, came %q", errUsage, x.at)
	}
	return t, nil
}

func (x *labCA) print(cmd *cobra.Command, v any, text string) error {
	if !x.json {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
		return err
	}
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, args[0])
	}
	return nil
}

func (x *labCA) initCommand() *cobra.Command {
	var services []string
	var key, deviceDomain, policyDomain, suffix, crlURL string
	var backdate time.Duration
	cmd := &cobra.Command{Use: "init", Args: noArgs, Short: "Make the device CA, the policy signers' CA and a CA for each --service; or add a --service"}
	f := cmd.Flags()
	f.StringArrayVar(&services, "service", nil, "name of a service; may be repeated")
	f.StringVar(&key, "key-type", "p256", "keys of the CAs: p256, p384, rsa2048, rsa3072 or ed25519")
	f.StringVar(&deviceDomain, "device-domain", "devices.example", "domain of device certificates (name constraint)")
	f.StringVar(&policyDomain, "policy-domain", "policy.example", "domain of policy signers' certificates")
	f.StringVar(&suffix, "service-suffix", "example", "services certify names in SERVICE.SUFFIX")
	f.StringVar(&crlURL, "crl-url", "", "base address for CRL distribution points")
	f.DurationVar(&backdate, "backdate", time.Hour, "how long ago the CAs began, so that a clock that is behind does not matter")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		at, err := x.now()
		if err != nil {
			return err
		}
		made := []string{}
		one := func(k labca.Kind, name, domain string) error {
			dir := labca.Dir(x.dir, k, name)
			if _, err := os.Stat(filepath.Join(dir, "state.json")); err == nil && k != labca.Service {
				return nil // adding a service
			}
			a, err := labca.Create(dir, labca.Options{Kind: k, Name: name, Domain: domain, Key: labca.KeyType(key), At: at.Add(-backdate), CRLURL: crlURL})
			if err != nil {
				return err
			}
			a.Close()
			made = append(made, dir)
			return nil
		}
		err = errors.Join(one(labca.Device, "device", deviceDomain), one(labca.Policy, "policy", policyDomain))
		for _, s := range services {
			if !labca.ValidName(s) {
				return fmt.Errorf("%w: --service: expected letters, digits, '-', '.' and '_', came %q", errUsage, s)
			}
			err = errors.Join(err, one(labca.Service, s, s+"."+suffix))
		}
		if err != nil {
			return err
		}
		return x.print(cmd, map[string]any{"made": made}, fmt.Sprintf("%d authorities in %s; anchors are their root.pem", len(made), x.dir))
	}
	return cmd
}

func (x *labCA) open(k labca.Kind, service string) (*labca.Authority, error) {
	if k == labca.Service && !labca.ValidName(service) {
		return nil, fmt.Errorf("%w: --service: expected the name of a service, came %q", errUsage, service)
	}
	return labca.Open(labca.Dir(x.dir, k, service))
}

func (x *labCA) issueCommand(kind labca.Kind) *cobra.Command {
	var service, csr, name, out, newKey, keyType, device string
	var life time.Duration
	use := map[labca.Kind]string{labca.Device: "issue-device", labca.Service: "issue-service", labca.Policy: "issue-signer"}
	short := map[labca.Kind]string{
		labca.Device:  "Issue a device certificate, for a request or a new key in a file",
		labca.Service: "Issue a service certificate, bound to a device certificate (RFC 9763)",
		labca.Policy:  "Issue a policy signer's certificate",
	}
	cmd := &cobra.Command{Use: use[kind], Args: noArgs, Short: short[kind]}
	f := cmd.Flags()
	f.StringVar(&csr, "csr", "", "request (PEM or DER)")
	f.StringVar(&name, "name", "", "DNS name in the certificate; default: the request's")
	f.StringVar(&out, "out", "", "file for the certificate and the issuing CA's (PEM); default: standard output")
	f.StringVar(&newKey, "new-key", "", "without a request: file for a new key (for peers that keep keys in files)")
	f.StringVar(&keyType, "key-type", "p256", "of --new-key")
	f.DurationVar(&life, "life", 0, "how long it is valid; default: by the profile")
	if kind == labca.Service {
		f.StringVar(&service, "service", "", "name of the service")
		f.StringVar(&device, "device-cert", "", "device certificate that it is bound to; default: the one in the request")
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		at, err := x.now()
		if err != nil {
			return err
		}
		if (csr == "") == (newKey == "") {
			return fmt.Errorf("%w: expected one of --csr and --new-key", errUsage)
		}
		var dev *x509.Certificate
		if device != "" {
			list, err := readCertificates(device)
			if err != nil {
				return err
			}
			dev = list[0]
		}
		a, err := x.open(kind, service)
		if err != nil {
			return err
		}
		defer a.Close()
		var c *x509.Certificate
		if csr != "" {
			c, err = x.answer(a, csr, name, at, life, dev)
		} else {
			c, err = issueNewKey(a, newKey, keyType, name, at, life, dev)
		}
		if err != nil {
			return err
		}
		text := certs.EncodePEM(append([]*x509.Certificate{c}, a.Intermediates()...)...)
		if out == "" && !x.json {
			_, err := cmd.OutOrStdout().Write(text)
			return err
		}
		if out != "" {
			if err := labca.WriteFile(out, text, 0o644); err != nil {
				return err
			}
		}
		return x.print(cmd, map[string]any{"serial": fmt.Sprintf("%x", c.SerialNumber), "subject": c.Subject.String(), "not_after": c.NotAfter, "file": out, "pem": string(text)},
			fmt.Sprintf("%s: %s, serial number %x, valid until %s", out, c.Subject, c.SerialNumber, c.NotAfter.Format(time.RFC3339)))
	}
	return cmd
}

// answer answers a request. For a service the device certificate is judged by the device CA.
func (x *labCA) answer(a *labca.Authority, file, name string, at time.Time, life time.Duration, device *x509.Certificate) (*x509.Certificate, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := labca.FromCSR{CSR: b, At: at, Life: life, Name: name, Device: device}
	if a.Kind() == labca.Service {
		d, err := x.open(labca.Device, "")
		if err != nil {
			return nil, err
		}
		defer d.Close()
		r.DeviceAnchors, r.DeviceCA = []*x509.Certificate{d.Anchor()}, d.Intermediates()
		if r.DeviceCRLs, err = d.CRLs(at, time.Hour); err != nil {
			return nil, err
		}
	}
	c, err := a.IssueFromCSR(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func issueNewKey(a *labca.Authority, file, keyType, name string, at time.Time, life time.Duration, device *x509.Certificate) (*x509.Certificate, error) {
	if name == "" {
		return nil, fmt.Errorf("%w: --new-key needs --name", errUsage)
	}
	k, err := labca.NewKey(labca.KeyType(keyType))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	r := labca.Request{Public: k.Public(), DNSNames: []string{name}, At: at, Life: life}
	if device != nil {
		r.Device = device.Raw
	}
	c, err := a.Issue(r)
	if err != nil {
		return nil, err
	}
	b, err := labca.MarshalKey(k)
	if err != nil {
		return nil, err
	}
	return c, labca.WriteFile(file, b, 0o600)
}

func readCertificates(file string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	list, err := certs.ParseCertificates(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

// kindFlags adds the choice of an authority.
func kindFlags(cmd *cobra.Command) func() (labca.Kind, string, error) {
	kind := cmd.Flags().String("ca", "", "device, policy or service")
	service := cmd.Flags().String("service", "", "name of the service, with --ca service")
	return func() (labca.Kind, string, error) {
		switch k := labca.Kind(*kind); k {
		case labca.Device, labca.Policy, labca.Service:
			return k, *service, nil
		}
		return "", "", fmt.Errorf("%w: --ca: expected device, policy or service, came %q", errUsage, *kind)
	}
}

func (x *labCA) revokeCommand() *cobra.Command {
	var serial, cert string
	var reason int
	cmd := &cobra.Command{Use: "revoke", Args: noArgs, Short: "Put a certificate on the revocation list"}
	which := kindFlags(cmd)
	cmd.Flags().StringVar(&serial, "serial", "", "serial number, hexadecimal")
	cmd.Flags().StringVar(&cert, "cert", "", "or: file with the certificate")
	cmd.Flags().IntVar(&reason, "reason", 0, "CRLReason: 0 unspecified, 1 key compromise, 3 affiliation changed, 4 superseded, 5 cessation, 9 privilege withdrawn")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		at, err := x.now()
		if err != nil {
			return err
		}
		k, service, err := which()
		if err != nil {
			return err
		}
		if cert != "" {
			list, err := readCertificates(cert)
			if err != nil {
				return err
			}
			serial = fmt.Sprintf("%x", list[0].SerialNumber)
		}
		n, ok := new(big.Int).SetString(serial, 16)
		if !ok || n.Sign() <= 0 || reason < 0 || reason > 10 || reason == 7 || reason == 8 {
			return fmt.Errorf("%w: expected a serial number in hexadecimal and a reason of RFC 5280, section 5.3.1, came %q and %d", errUsage, serial, reason)
		}
		a, err := x.open(k, service)
		if err != nil {
			return err
		}
		defer a.Close()
		if err := a.Revoke(n, at, reason); err != nil {
			return err
		}
		return x.print(cmd, map[string]any{"revoked": serial}, "revoked; make the new list with: wardgate-lab ca crl")
	}
	return cmd
}

func (x *labCA) crlCommand() *cobra.Command {
	var out string
	var life time.Duration
	cmd := &cobra.Command{Use: "crl", Args: noArgs, Short: "Make the current revocation lists (issuing CA and root, PEM)"}
	which := kindFlags(cmd)
	cmd.Flags().StringVar(&out, "out", "", "file; default: standard output")
	cmd.Flags().DurationVar(&life, "life", 7*24*time.Hour, "until the next one")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		at, err := x.now()
		if err != nil {
			return err
		}
		k, service, err := which()
		if err != nil {
			return err
		}
		a, err := x.open(k, service)
		if err != nil {
			return err
		}
		defer a.Close()
		lists, err := a.CRLs(at, life)
		if err != nil {
			return err
		}
		text := labca.EncodeCRLs(lists)
		if out != "" {
			if err := labca.WriteFile(out, text, 0o644); err != nil {
				return err
			}
		}
		if out == "" && !x.json {
			_, err := cmd.OutOrStdout().Write(text)
			return err
		}
		return x.print(cmd, map[string]any{"file": out, "pem": string(text), "entries": len(lists[0].RevokedCertificateEntries)}, fmt.Sprintf("%s: %d revoked", out, len(lists[0].RevokedCertificateEntries)))
	}
	return cmd
}

func (x *labCA) listCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Args: noArgs, Short: "What an authority has issued"}
	which := kindFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		k, service, err := which()
		if err != nil {
			return err
		}
		a, err := x.open(k, service)
		if err != nil {
			return err
		}
		defer a.Close()
		text := ""
		for _, e := range a.Issued() {
			state := "until " + e.NotAfter.Format(time.RFC3339)
			if e.RevokedAt != nil {
				state = "revoked " + e.RevokedAt.Format(time.RFC3339)
			}
			text += fmt.Sprintf("%s  %s  %s\n", e.Serial, e.Subject, state)
		}
		return x.print(cmd, map[string]any{"issued": a.Issued()}, text+fmt.Sprintf("%d issued", len(a.Issued())))
	}
	return cmd
}

func (x *labCA) signPolicyCommand() *cobra.Command {
	var key, cert, in, out string
	cmd := &cobra.Command{
		Use: "sign-policy", Args: noArgs, Short: "Sign a policy document (JSON) with a policy signer's key",
		Long: "Checks the document as a device would (flows, tests, no relay) and signs it. --cert holds the signer's\n" +
			"certificate and the issuing CA's, as `issue-signer --new-key` writes them.",
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "the signer's key (PKCS #8 PEM)")
	f.StringVar(&cert, "cert", "", "the signer's certificate and the issuing CA's (PEM)")
	f.StringVar(&in, "in", "", "the document (JSON)")
	f.StringVar(&out, "out", "", "file for the signed policy (.jws); default: standard output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if key == "" || cert == "" || in == "" {
			return fmt.Errorf("%w: expected --key, --cert and --in", errUsage)
		}
		jws, serial, err := signPolicy(key, cert, in)
		if err != nil {
			return err
		}
		if out == "" {
			_, err := io.WriteString(cmd.OutOrStdout(), string(jws)+"\n")
			return err
		}
		if err := labca.WriteFile(out, jws, 0o644); err != nil {
			return err
		}
		return x.print(cmd, map[string]any{"file": out, "serial": serial}, fmt.Sprintf("%s: policy with serial number %d", out, serial))
	}
	return cmd
}

func signPolicy(key, cert, in string) (jws []byte, serial uint64, err error) {
	k, err := labca.ReadKey(key)
	if err != nil {
		return nil, 0, err
	}
	chain, err := readCertificates(cert)
	if err != nil {
		return nil, 0, err
	}
	if !certs.SamePublicKey(chain[0].PublicKey, k.Public()) {
		return nil, 0, fmt.Errorf("%s is not the key of %s", key, cert)
	}
	b, err := os.ReadFile(in)
	if err != nil {
		return nil, 0, err
	}
	d, err := policy.Parse(b)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", in, err)
	}
	jws, err = policy.Sign(d, k, chain)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", in, err)
	}
	return jws, d.Serial, nil
}
