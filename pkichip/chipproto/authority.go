package chipproto

// LayerAuthority is no layer of a device's token: keys of a certification authority or of a signer of
// policies, on a token of the service provider. Message.Service has the key's label on the token
// (CKA_LABEL). No certificates belong to them, and no layer above authorises them.
const LayerAuthority Layer = 3
