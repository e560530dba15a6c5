package pkichip

import (
	"context"
	"crypto/x509"

	"wardgate/pkichip/chipproto"
)

// Key is a key of a certification authority or of a signer of policies, on a token that belongs to a
// service provider. Such keys belong to neither of a device's two layers and need none of them.
type Key struct {
	Label  string // CKA_LABEL: 1 to 64 printable ASCII characters, not beginning with "wardgate-"
	ID     []byte // CKA_ID
	Signer *Signer
}

// Keys returns the authorities' keys on the token: also those that other tools made, where their
// public halves are on the token too.
func (c *Chip) Keys(ctx context.Context) ([]Key, error) {
	m, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeList, Layer: chipproto.LayerAuthority})
	if err != nil {
		return nil, err
	}
	var out []Key
	for i := range m.Creds {
		x, err := c.credential(&m.Creds[i])
		if err != nil {
			return nil, err
		}
		if s, ok := x.Signer.(*Signer); ok {
			out = append(out, Key{Label: x.Service, ID: x.ID, Signer: s})
		}
	}
	return out, nil
}

// GenerateKey makes an authority's key on the token, sensitive and not extractable. A label that
// a key has already is ErrExists.
func (c *Chip) GenerateKey(ctx context.Context, label string, kind KeyType) (Key, error) {
	m, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeGenerate, Layer: chipproto.LayerAuthority, Service: label, KeyType: kind})
	if err != nil {
		return Key{}, err
	}
	pub, err := x509.ParsePKIXPublicKey(m.Public)
	if err != nil {
		return Key{}, processError(ErrTokenFailed, "the public key of "+label+" cannot be used: "+err.Error(), "use another kind of key")
	}
	return Key{Label: label, ID: m.KeyID, Signer: &Signer{chip: c, layer: chipproto.LayerAuthority, service: label, id: m.KeyID, public: pub}}, nil
}

// DeleteKey removes an authority's key, found by label and ID: ErrNoKey when there is none.
func (c *Chip) DeleteKey(ctx context.Context, k Key) error {
	_, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeDelete, Layer: chipproto.LayerAuthority, Service: k.Label, KeyID: k.ID})
	return err
}
