package ike

import "wardgate/ike/message"

// TakeConfig reads a CFG_REPLY, as ConfigRequest r asked for it.
func TakeConfig(r *ConfigRequest, cp *message.CP) (*NetConfig, error) { return r.take(cp) }
