package message_test

import (
	"bytes"
	"errors"
)

// scripted is a Protector that knows one message.
type scripted struct{ aad, plain, sealed []byte }

var errScript = errors.New("not the message of the script")

func (p *scripted) SealedLen(n int) int { return n + len(p.sealed) - len(p.plain) }

func (p *scripted) AppendSealed(dst, aad, plaintext []byte) ([]byte, error) {
	if !bytes.Equal(aad, p.aad) || !bytes.Equal(plaintext, p.plain) {
		return nil, errScript
	}
	return append(dst, p.sealed...), nil
}

func (p *scripted) Open(aad, sealed []byte) ([]byte, error) {
	if !bytes.Equal(aad, p.aad) || !bytes.Equal(sealed, p.sealed) {
		return nil, errScript
	}
	return p.plain, nil
}

// plainProtector seals by copying: four octets in front, the first of which is a checksum.
type plainProtector struct{}

func checksum(parts ...[]byte) byte {
	var c byte = 1
	for _, p := range parts {
		for _, b := range p {
			c = c*31 + b
		}
	}
	return c
}

func (plainProtector) SealedLen(n int) int { return n + 4 }

func (plainProtector) AppendSealed(dst, aad, plaintext []byte) ([]byte, error) {
	return append(append(dst, checksum(aad, plaintext), 'I', 'V', '!'), plaintext...), nil
}

func (plainProtector) Open(aad, sealed []byte) ([]byte, error) {
	if len(sealed) < 4 || sealed[0] != checksum(aad, sealed[4:]) {
		return nil, errors.New("bad checksum")
	}
	return sealed[4:], nil
}

// lyingProtector announces another length than it writes.
type lyingProtector struct{ plainProtector }

func (lyingProtector) SealedLen(n int) int { return n + 5 }
