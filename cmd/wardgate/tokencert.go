package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"wardgate/internal/certs"
	"wardgate/pkichip"
)

// place is where on the token something goes: --device NAME or --service SERVICE.
type place struct {
	device  bool
	service string
}

func (p place) check() (pkichip.Layer, error) {
	switch {
	case p.device && p.service == "":
		return pkichip.LayerDevice, nil
	case !p.device && p.service != "":
		return pkichip.LayerService, nil
	}
	return 0, badUsage("give --device for layer 1 or --service SERVICE for layer 2", "expected one of --device and --service")
}

func (p place) flags() []string {
	if p.device {
		return []string{"--device"}
	}
	return []string{"--service", p.service}
}

func tokenCSRCommand(o *tokenOptions) *cobra.Command {
	var at place
	var r keyRequest
	cmd := &cobra.Command{
		Use: "csr", Args: exactly(), Short: "Make a key on the token and a request for its certificate",
		Long: "Makes a new key pair on the token, which never leaves it, and a certification request (PKCS #10).\n" +
			"The request for a service proves possession of the device key (RFC 9763). A key that is in use\n" +
			"stays in use until the new certificate is imported.",
	}
	f := cmd.Flags()
	f.BoolVar(&at.device, "device", false, "for the device (layer 1)")
	f.StringVar(&at.service, "service", "", "for this service (layer 2)")
	f.StringVar(&r.name, "name", "", "DNS name that the certificate shall have, such as a.devices.example")
	f.StringVar(&r.kind, "key-type", string(pkichip.P256), "p256, p384, rsa2048, rsa3072 or ed25519")
	f.StringVar(&r.out, "out", "", "file for the request (PEM); default: standard output")
	cmd.RunE = o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, args []string) error {
		var err error
		if r.layer, err = at.check(); err != nil {
			return err
		}
		r.service = at.service
		r.next = fmt.Sprintf("wardgate token import %s --ca CA.pem CERTIFICATE.pem", plainAll(at.flags(), " "))
		return r.run(ctx, c, chip)
	})
	return cmd
}

// keyRequest is a key that is to be made, and a request for its certificate.
type keyRequest struct {
	layer           pkichip.Layer
	service         string
	name, kind, out string
	next            string // the command that takes the certificate
	voids           bool   // there was a request that waits
}

func (r *keyRequest) run(ctx context.Context, c *cli, chip *pkichip.Chip) error {
	if r.name == "" {
		return badUsage("give --name", "expected the DNS name that the certificate shall have, came nothing")
	}
	key, err := chip.Generate(ctx, r.layer, r.service, pkichip.KeyType(r.kind))
	if err != nil {
		return err
	}
	der, err := chip.CSR(ctx, key, r.name, c.now())
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	if r.out != "" {
		if err := os.WriteFile(r.out, text, 0o644); err != nil {
			return fileFailed(r.out, err)
		}
	}
	answer := map[string]any{"layer": int(r.layer), "service": r.service, "name": r.name, "key": certs.KeyName(key.Public), "file": r.out}
	if r.out == "" {
		answer["csr"] = string(text)
	}
	return c.answer(answer, func(p *printer) {
		if r.out == "" {
			p.b.Write(text)
			return
		}
		p.line("%s: request for %s, key %s. Have it answered, then: %s", plain(r.out), plain(r.name), certs.KeyName(key.Public), r.next)
		if r.voids {
			p.line("An earlier request for service %s is void: its key is gone.", plain(r.service))
		}
	})
}

func tokenImportCommand(o *tokenOptions) *cobra.Command {
	var at place
	var s storeRequest
	cmd := &cobra.Command{
		Use: "import FILE", Args: exactly("a file with the certificate (PEM, leaf first, then intermediates)"), Short: "Write a certificate to the token",
		Long: "Writes a certificate and its intermediates to the token, when its key is there, it chains to one of\n" +
			"the CAs that --ca names and, for a service, it is bound to this device's certificate (RFC 9763).",
	}
	f := cmd.Flags()
	f.BoolVar(&at.device, "device", false, "the device's (layer 1)")
	f.StringVar(&at.service, "service", "", "this service's (layer 2)")
	s.flags(f)
	f.BoolVar(&s.replace, "replace", false, "replace the device certificate by a new one for the same key")
	cmd.RunE = o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, args []string) error {
		var err error
		if s.layer, err = at.check(); err != nil {
			return err
		}
		s.service = at.service
		return s.run(ctx, c, chip, args[0])
	})
	return cmd
}

// storeRequest is a certificate that is to be written to the token.
type storeRequest struct {
	layer     pkichip.Layer
	service   string
	cas, crls []string
	replace   bool
}

func (s *storeRequest) flags(f *pflag.FlagSet) {
	f.StringArrayVar(&s.cas, "ca", nil, "file with the CA certificate that it must chain to (anchor); may be repeated")
	f.StringArrayVar(&s.crls, "crl", nil, "file with revocation lists; may be repeated")
}

func (s *storeRequest) run(ctx context.Context, c *cli, chip *pkichip.Chip, file string) error {
	if len(s.cas) == 0 {
		return badUsage("give --ca FILE", "expected the CA that the certificate must chain to, came nothing")
	}
	list, err := readCertificates(file)
	if err != nil {
		return err
	}
	x := pkichip.Store{Layer: s.layer, Service: s.service, Cert: list[0], Chain: list[1:], Replace: s.replace}
	for _, name := range s.cas {
		cas, err := readCertificates(name)
		if err != nil {
			return err
		}
		x.Anchors = append(x.Anchors, cas...)
	}
	for _, name := range s.crls {
		b, err := readBounded(name, certs.MaxCRLBytes)
		if err != nil {
			return err
		}
		l, err := certs.ParseCRLs(b)
		if err != nil {
			return fileFailed(name, err)
		}
		x.CRLs = append(x.CRLs, l...)
	}
	// An anchor that is sent along does no harm, but is not kept on the token.
	if err := chip.Store(ctx, x); err != nil {
		return err
	}
	t := c.reload(ctx)
	answer := map[string]any{"layer": int(s.layer), "service": s.service, "subject": list[0].Subject.String(), "not_after": list[0].NotAfter, "daemon": t.Daemon}
	if t.Trouble != "" {
		answer["trouble"] = t.Trouble
	}
	return c.answer(answer, func(p *printer) {
		what := "The device certificate"
		if s.layer == pkichip.LayerService {
			what = "The certificate of service " + plain(s.service)
		}
		p.line("%s is on the token, valid until %s.", what, list[0].NotAfter.Local().Format("2006-01-02 15:04:05"))
		t.write(p)
	})
}

func readCertificates(name string) ([]*x509.Certificate, error) {
	b, err := readBounded(name, 4<<20)
	if err != nil {
		return nil, err
	}
	list, err := certs.ParseCertificates(b)
	if err != nil {
		return nil, fileFailed(name, err)
	}
	return list, nil
}

var errFileTooLarge = errors.New("the file is too large")

func readBounded(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fileFailed(name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = errFileTooLarge
	}
	if err != nil {
		return nil, fileFailed(name, err)
	}
	return b, nil
}
