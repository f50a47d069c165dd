#include "textflag.h"

// func outs(port uint16, data *byte, count int)
TEXT ·outs(SB), NOSPLIT, $0-24
	MOVW port+0(FP), DX
	MOVQ data+8(FP), SI
	MOVQ count+16(FP), CX
	CLD
	REP
	OUTSB
	RET
