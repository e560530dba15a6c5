package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

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
	var name, kind, out string
	cmd := &cobra.Command{
		Use: "csr", Args: exactly(), Short: "Make a key on the token and a request for its certificate",
		Long: "Makes a new key pair on the token, which never leaves it, and a certification request (PKCS #10).\n" +
			"The request for a service proves possession of the device key (RFC 9763). A key that is in use\n" +
			"stays in use until the new certificate is imported.",
	}
	f := cmd.Flags()
	f.BoolVar(&at.device, "device", false, "for the device (layer 1)")
	f.StringVar(&at.service, "service", "", "for this service (layer 2)")
	f.StringVar(&name, "name", "", "DNS name that the certificate shall have, such as a.devices.example")
	f.StringVar(&kind, "key-type", string(pkichip.P256), "p256, p384, rsa2048, rsa3072 or ed25519")
	f.StringVar(&out, "out", "", "file for the request (PEM); default: standard output")
	cmd.RunE = o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, _ []string) error {
		layer, err := at.check()
		if err != nil {
			return err
		}
		if name == "" {
			return badUsage("give --name", "expected the DNS name that the certificate shall have, came nothing")
		}
		key, err := chip.Generate(ctx, layer, at.service, pkichip.KeyType(kind))
		if err != nil {
			return err
		}
		der, err := chip.CSR(ctx, key, name, c.now())
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		if out != "" {
			if err := os.WriteFile(out, text, 0o644); err != nil {
				return fileFailed(out, err)
			}
		}
		answer := map[string]any{"layer": int(layer), "service": at.service, "name": name, "key": certs.KeyName(key.Public), "file": out}
		if out == "" {
			answer["csr"] = string(text)
		}
		return c.answer(answer, func(p *printer) {
			if out == "" {
				p.b.Write(text)
				return
			}
			p.line("%s: request for %s, key %s. Have it answered, then: wardgate token import %s --ca CA.pem CERTIFICATE.pem",
				plain(out), plain(name), certs.KeyName(key.Public), plainAll(at.flags(), " "))
		})
	})
	return cmd
}

func tokenImportCommand(o *tokenOptions) *cobra.Command {
	var at place
	var replace bool
	var caFiles, crlFiles []string
	cmd := &cobra.Command{
		Use: "import FILE", Args: exactly("a file with the certificate (PEM, leaf first, then intermediates)"), Short: "Write a certificate to the token",
		Long: "Writes a certificate and its intermediates to the token, when its key is there, it chains to one of\n" +
			"the CAs that --ca names and, for a service, it is bound to this device's certificate (RFC 9763).",
	}
	f := cmd.Flags()
	f.BoolVar(&at.device, "device", false, "the device's (layer 1)")
	f.StringVar(&at.service, "service", "", "this service's (layer 2)")
	f.StringArrayVar(&caFiles, "ca", nil, "file with the CA certificate that it must chain to (anchor); may be repeated")
	f.StringArrayVar(&crlFiles, "crl", nil, "file with revocation lists; may be repeated")
	f.BoolVar(&replace, "replace", false, "replace the device certificate by a new one for the same key")
	cmd.RunE = o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, args []string) error {
		layer, err := at.check()
		if err != nil {
			return err
		}
		if len(caFiles) == 0 {
			return badUsage("give --ca FILE", "expected the CA that the certificate must chain to, came nothing")
		}
		list, err := readCertificates(args[0])
		if err != nil {
			return err
		}
		s := pkichip.Store{Layer: layer, Service: at.service, Cert: list[0], Chain: list[1:], Replace: replace}
		for _, name := range caFiles {
			cas, err := readCertificates(name)
			if err != nil {
				return err
			}
			s.Anchors = append(s.Anchors, cas...)
		}
		for _, name := range crlFiles {
			b, err := readBounded(name, certs.MaxCRLBytes)
			if err != nil {
				return err
			}
			l, err := certs.ParseCRLs(b)
			if err != nil {
				return fileFailed(name, err)
			}
			s.CRLs = append(s.CRLs, l...)
		}
		// An anchor that is sent along does no harm, but is not kept on the token.
		if err := chip.Store(ctx, s); err != nil {
			return err
		}
		return c.answer(map[string]any{"layer": int(layer), "service": at.service, "subject": list[0].Subject.String(), "not_after": list[0].NotAfter}, func(p *printer) {
			what := "The device certificate"
			if layer == pkichip.LayerService {
				what = "The certificate of service " + plain(at.service)
			}
			p.line("%s is on the token, valid until %s.", what, list[0].NotAfter.Local().Format("2006-01-02 15:04:05"))
		})
	})
	return cmd
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
