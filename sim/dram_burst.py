"""The burst engine: every command of one DRAM channel, with exact bank state. Compiled; time in ticks of the preset.

The controller keeps reads and writes in two bounded queues and issues, on each command bus, the oldest command whose
timing allows it. A precharge waits while an older request hits the open row, and never closes a row between an activate
and the access it was made for; such accesses go first. All-bank refresh stops new accesses, closes the banks and
refreshes one pseudo channel after the other. Time jumps from command to command, so idle clocks cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hw.dram import DramPreset, address_fields

Ints = NDArray[np.int64]

# Commands of a recorded stream.
ACT, PRE, RD, WR, PREAB, REF, ACT2, CAS = range(8)
COMMANDS = ("ACT", "PRE", "RD", "WR", "PREab", "REFab", "ACT2", "CAS")

# Why a data bus stood idle, or a command waited.
REASONS = (
    "data bus", "tCCD_L", "tCCD_R", "tRCD", "tWTR", "tRTW", "tRRD", "tFAW", "tRC", "tRP", "tRTP", "tWR", "refresh",
    "command bus", "queue depth", "arrival rate",
)  # fmt: skip
(W_BUS, W_CCDL, W_CCDR, W_RCD, W_WTR, W_RTW, W_RRD, W_FAW, W_RC, W_RP, W_RTP, W_WR, W_REF, W_CMD, W_QUEUE, W_ARRIVE) = range(len(REASONS))

AGE_BITS = 40
"""Bits of a burst's number in a sorting key; above them is a time of less than 2^22 ticks from now."""
AGE_MASK = (1 << AGE_BITS) - 1

# Indices into the configuration, all in ticks.
(
    C_PCS, C_RANKS, C_GROUPS, C_BANKS, C_EDGE, C_DUAL, C_LACT, C_LPRE, C_LCOL, C_LREF,
    C_BL, C_CL, C_CWL, C_RCD_RD, C_RCD_WR, C_RP_ACT, C_RAS, C_RC, C_CCDS, C_CCDL, C_CCDS_WR, C_CCDL_WR, C_CCDR,
    C_RRDS, C_RRDL, C_FAW, C_WTRS, C_WTRL, C_RTP, C_WRPRE, C_RTW, C_PPD, C_RFC, C_REFI, C_RPAB_REF, C_ACT_REF, C_AAD, C_WCKPST,
    C_CLOCK, C_BURSTS, C_REFRESH, C_QUEUE, C_HIGH, C_LOW, C_COUNT,
) = range(45)  # fmt: skip

# Indices into the counters that a run returns.
(S_END, S_ACT, S_PRE, S_RD, S_WR, S_PREAB, S_REF, S_BUS, S_RECORDED, S_COMMANDS, S_COUNT) = range(11)


def configuration(preset: DramPreset, *, refresh: bool, queue: int, high: int, low: int) -> Ints:
    """The preset in ticks, every rule shifted by the lengths of its two commands so that it holds between first cycles."""
    t, gap = preset.ticks_per_clock, preset.gap_ticks
    cfg = np.zeros(C_COUNT, dtype=np.int64)
    column = {
        C_CCDS: max(preset.n_ccd_s, preset.n_bl),
        C_CCDL: preset.n_ccd_l,
        C_CCDS_WR: max(preset.n_ccd_s_wr, preset.n_bl),
        C_CCDL_WR: preset.n_ccd_l_wr,
        C_CCDR: max(preset.n_ccd_r, preset.n_bl),
        C_RTW: preset.n_rtw,
        C_WTRS: preset.n_cwl + preset.n_bl + preset.n_wtr_s,
        C_WTRL: preset.n_cwl + preset.n_bl_max + preset.n_wtr_l,
        C_BL: preset.n_bl,
        C_CL: preset.n_cl,
        C_CWL: preset.n_cwl,
        C_REFI: preset.n_refi,
        C_AAD: preset.n_aad,
        C_CLOCK: 1,
    }
    for index, clocks in column.items():
        cfg[index] = clocks * t
    cfg[C_PCS], cfg[C_RANKS], cfg[C_GROUPS], cfg[C_BANKS] = preset.pseudo_channels, preset.ranks, preset.bank_groups, preset.banks
    cfg[C_EDGE], cfg[C_DUAL] = t, preset.command_bus == "row_column"
    cfg[C_LACT], cfg[C_LPRE], cfg[C_LCOL], cfg[C_LREF] = preset.act_ticks, preset.pre_ticks, preset.column_ticks, preset.refresh_ticks
    cfg[C_RCD_RD], cfg[C_RCD_WR] = gap(preset.n_rcd_rd, "act", "column"), gap(preset.n_rcd_wr, "act", "column")
    cfg[C_RP_ACT], cfg[C_RAS] = gap(preset.n_rp, "pre", "act"), gap(preset.n_ras, "act", "pre")
    cfg[C_RC], cfg[C_RRDS], cfg[C_RRDL] = preset.n_rc * t, preset.n_rrd_s * t, preset.n_rrd_l * t
    cfg[C_FAW], cfg[C_PPD] = preset.n_faw * t, preset.n_ppd * t
    cfg[C_RTP] = gap(preset.n_rtp, "column", "pre")
    cfg[C_WRPRE] = gap(preset.n_cwl + preset.n_bl + preset.n_wr, "column", "pre")
    cfg[C_RFC], cfg[C_RPAB_REF] = gap(preset.n_rfc, "refresh", "act"), gap(preset.n_rp_ab, "pre", "refresh")
    cfg[C_ACT_REF] = preset.act_ticks - preset.refresh_ticks
    cfg[C_WCKPST] = -1 if preset.n_wckpst is None else preset.n_wckpst * t
    cfg[C_BURSTS] = preset.bursts_per_request
    cfg[C_REFRESH], cfg[C_QUEUE], cfg[C_HIGH], cfg[C_LOW] = refresh, queue, high, low
    return cfg


def decoder(preset: DramPreset, mapping: str) -> Ints:
    """The mapping as rows (kind, bits) from the least significant bit of the burst index: kinds column, pc, rank, bg, bank, row."""
    kinds = ("column", "pc", "rank", "bg", "bank", "row")
    return np.array([(kinds.index(field), bits) for field, bits in address_fields(preset, mapping)], dtype=np.int64)


@njit(cache=True, nogil=True)
def decode(burst: int, fields: Ints, ranks: int, groups: int, banks: int) -> tuple[int, int]:
    """Flat bank and row of a burst index."""
    pc = rank = bg = bank = row = 0
    pc_at = rank_at = bg_at = bank_at = row_at = 0
    for i in range(fields.shape[0]):
        kind, bits = fields[i, 0], fields[i, 1]
        value = burst & ((1 << bits) - 1)
        burst >>= bits
        if kind == 1:
            pc |= value << pc_at
            pc_at += bits
        elif kind == 2:
            rank |= value << rank_at
            rank_at += bits
        elif kind == 3:
            bg |= value << bg_at
            bg_at += bits
        elif kind == 4:
            bank |= value << bank_at
            bank_at += bits
        elif kind == 5:
            row |= value << row_at
            row_at += bits
    return ((pc * ranks + rank) * groups + bg) * banks + bank, row


@njit(cache=True, nogil=True)
def enlist(waiting: Ints, count: Ints, place: Ints, age: Ints, mode: int, is_open: bool, bank: int) -> None:
    """Adds a bank to the banks with requests of `mode`: lists 2 * mode (closed banks) and 2 * mode + 1 (open ones).

    Closed banks stand in the order of their oldest request, whose number `age` gives: it stays until the bank is opened.
    """
    k = 2 * mode + (1 if is_open else 0)
    at = count[k]
    count[k] += 1
    if not is_open:
        while at > 0 and age[mode, waiting[k, at - 1]] > age[mode, bank]:
            moved = waiting[k, at - 1]
            waiting[k, at] = moved
            place[mode, moved] = at
            at -= 1
    waiting[k, at] = bank
    place[mode, bank] = at


@njit(cache=True, nogil=True)
def unlist(waiting: Ints, count: Ints, place: Ints, mode: int, is_open: bool, bank: int) -> None:
    """Takes a bank out again. Among closed banks the order stays; among open ones the last takes its place."""
    k = 2 * mode + (1 if is_open else 0)
    count[k] -= 1
    at = place[mode, bank]
    if is_open:
        moved = waiting[k, count[k]]
        waiting[k, at] = moved
        place[mode, moved] = at
    else:
        while at < count[k]:
            moved = waiting[k, at + 1]
            waiting[k, at] = moved
            place[mode, moved] = at
            at += 1
    place[mode, bank] = -1


@njit(cache=True, nogil=True)
def run(
    cfg: Ints,
    fields: Ints,
    addresses: Ints,  # burst index of the first burst of each request
    writes: Any,  # bool per request
    arrivals: Ints,  # tick per request, or empty: each request arrives as soon as its queue has room
    latency: Ints,  # out: ticks from arrival to the last data beat, per request
    record: Ints,  # out: rows (tick, command, bank, row, request), or no rows
) -> tuple[Ints, Ints]:
    """Serve all requests; returns the counters and, per reason, the data bus ticks lost to it."""
    pcs, ranks, groups, banks = cfg[C_PCS], cfg[C_RANKS], cfg[C_GROUPS], cfg[C_BANKS]
    edge, dual = cfg[C_EDGE], cfg[C_DUAL] != 0
    l_act, l_pre, l_col, l_ref = cfg[C_LACT], cfg[C_LPRE], cfg[C_LCOL], cfg[C_LREF]
    bl, cl, cwl = cfg[C_BL], cfg[C_CL], cfg[C_CWL]
    rcd_rd, rcd_wr, rp_act, ras, rc = cfg[C_RCD_RD], cfg[C_RCD_WR], cfg[C_RP_ACT], cfg[C_RAS], cfg[C_RC]
    ccds, ccdl, ccds_wr, ccdl_wr, ccdr = cfg[C_CCDS], cfg[C_CCDL], cfg[C_CCDS_WR], cfg[C_CCDL_WR], cfg[C_CCDR]
    rrds, rrdl, faw, wtrs, wtrl = cfg[C_RRDS], cfg[C_RRDL], cfg[C_FAW], cfg[C_WTRS], cfg[C_WTRL]
    rtp, wrpre, rtw, ppd, rfc, refi = cfg[C_RTP], cfg[C_WRPRE], cfg[C_RTW], cfg[C_PPD], cfg[C_RFC], cfg[C_REFI]
    rpab_ref, act_ref, aad, wckpst, clock = cfg[C_RPAB_REF], cfg[C_ACT_REF], cfg[C_AAD], cfg[C_WCKPST], cfg[C_CLOCK]
    per_request, refresh, depth, high, low = cfg[C_BURSTS], cfg[C_REFRESH] != 0, cfg[C_QUEUE], cfg[C_HIGH], cfg[C_LOW]

    per_pc = ranks * groups * banks
    n_banks = pcs * per_pc
    n_groups = pcs * ranks * groups
    n_ranks = pcs * ranks
    bank_group = np.empty(n_banks, np.int64)
    bank_rank = np.empty(n_banks, np.int64)
    bank_pc = np.empty(n_banks, np.int64)
    for b in range(n_banks):
        bank_group[b] = b // banks
        bank_rank[b] = b // (banks * groups)
        bank_pc[b] = b // per_pc

    slack = l_act + l_pre + l_col  # a command that waits no longer than this behind others is charged to its own rule
    far = np.int64(1) << 62
    open_row = np.full(n_banks, -1, np.int64)
    t_act = np.zeros(n_banks, np.int64)
    t_pre = np.zeros(n_banks, np.int64)
    t_col = np.zeros((2, n_banks), np.int64)
    g_act = np.zeros(n_groups, np.int64)
    g_col = np.zeros((2, n_groups), np.int64)
    r_col = np.zeros((2, n_ranks), np.int64)
    p_act = np.zeros(pcs, np.int64)
    p_pre = np.zeros(pcs, np.int64)
    p_ref = np.zeros(pcs, np.int64)
    faw_at = np.full((pcs, 4), -far, np.int64)
    faw_i = np.zeros(pcs, np.int64)
    open_count = np.zeros(pcs, np.int64)
    last_col = np.full(pcs, -far, np.int64)
    # why the times above are what they are
    why_act = np.full(n_banks, W_ARRIVE, np.int64)
    why_pre = np.full(n_banks, W_RC, np.int64)
    why_pre_issue = np.full(n_banks, W_RC, np.int64)
    why_open = np.full(n_banks, W_RCD, np.int64)
    why_group = np.full((2, n_groups), W_CCDL, np.int64)
    why_rank = np.full((2, n_ranks), W_BUS, np.int64)

    # slots of both queues and of accesses whose row is being opened
    slots = 2 * depth + n_banks
    s_bank = np.zeros(slots, np.int64)
    s_row = np.zeros(slots, np.int64)
    s_seq = np.zeros(slots, np.int64)
    s_req = np.zeros(slots, np.int64)
    s_in = np.zeros(slots, np.int64)
    s_next = np.full(slots, -1, np.int64)
    s_prev = np.full(slots, -1, np.int64)
    free = np.arange(slots)
    n_free = slots
    head = np.full((2, n_banks), -1, np.int64)
    tail = np.full((2, n_banks), -1, np.int64)
    hit = np.full((2, n_banks), -1, np.int64)
    busy = np.zeros((4, n_banks), np.int64)  # banks with requests: reads of closed and open banks, writes of closed and open ones
    busy_at = np.full((2, n_banks), -1, np.int64)
    n_busy = np.zeros(4, np.int64)
    age = np.zeros((2, n_banks), np.int64)
    count = np.zeros(2, np.int64)
    active = np.full(n_banks, -1, np.int64)  # the access an activate was made for
    active_w = np.zeros(n_banks, np.int64)
    act_list = np.zeros(n_banks, np.int64)
    act_at = np.full(n_banks, -1, np.int64)
    n_active = 0

    stats = np.zeros(S_COUNT, np.int64)
    lost = np.zeros(len(REASONS), np.int64)
    n_requests = addresses.shape[0]
    n_bursts = n_requests * per_request
    per_shift = 0
    while 1 << per_shift < per_request:
        per_shift += 1
    open_loop = arrivals.shape[0] > 0
    recording = record.shape[0]
    recorded = 0
    served = 0
    nxt = 0
    now = np.int64(0)
    row_free = np.int64(0)
    col_free = np.int64(0)
    next_ref = refi if refresh else far
    ref_pending = 0  # refreshes still to issue
    ref_pc = 0  # pseudo channel of the refresh at the head
    m = 0
    head_m, hit_m, age_m = head[m], hit[m], age[m]
    t_col_m, g_col_m, r_col_m = t_col[m], g_col[m], r_col[m]
    common_act = np.zeros(pcs, np.int64)
    common_pre = np.zeros(pcs, np.int64)
    pending_act2 = -1
    act2_deadline = np.int64(0)
    wck_until = np.int64(0)
    end = np.int64(0)
    left = np.full(n_requests, per_request, np.int64)  # bursts of each request still to serve

    while served < n_bursts:
        # requests enter their queues
        blocked = False
        while nxt < n_bursts:
            req = nxt >> per_shift
            w = 1 if writes[req] else 0
            if open_loop and arrivals[req] > now:
                break
            if count[w] >= depth:
                blocked = True
                break
            part = nxt - (req << per_shift)
            if part == 0:
                latency[req] = arrivals[req] if open_loop else now
            n_free -= 1
            s = free[n_free]
            b, row = decode(addresses[req] + part, fields, ranks, groups, banks)
            s_bank[s] = b
            s_row[s] = row
            s_seq[s] = nxt
            s_req[s] = req
            s_in[s] = now
            s_next[s] = -1
            s_prev[s] = tail[w, b]
            if tail[w, b] >= 0:
                s_next[tail[w, b]] = s
            else:
                head[w, b] = s
                age[w, b] = nxt
                enlist(busy, n_busy, busy_at, age, w, open_row[b] >= 0, b)
            tail[w, b] = s
            if hit[w, b] < 0 and open_row[b] == row:
                hit[w, b] = s
            count[w] += 1
            nxt += 1
        while now >= next_ref:
            ref_pending += pcs
            next_ref += refi
        # reads first; writes drain from the high to the low watermark, or while there is no read
        if (m == 0 and (count[1] >= high or count[0] == 0)) or (m == 1 and count[1] <= low and count[0] > 0):
            m = 1 - m
            head_m, hit_m, age_m = head[m], hit[m], age[m]
            t_col_m, g_col_m, r_col_m = t_col[m], g_col[m], r_col[m]

        base_row = max(now, row_free)
        base_col = max(now, col_free)
        if edge > 1:
            base_rise = base_row + (base_row & 1)
            base_col += base_col & 1
        else:
            base_rise = base_row
        # the best command on each bus: earliest, then by class (0 opened access, 1 refresh, 2 queued), then oldest
        col_t = far
        col_seq = far
        col_s = -1
        col_active = False
        # a time and the number of a burst in one integer, so that the earliest and then the oldest is the least
        col_key = far
        for i in range(n_active):
            b = act_list[i]
            s = active[b]
            w = active_w[b]
            t = max(base_col, t_col[w, b], g_col[w, bank_group[b]], r_col[w, bank_rank[b]])
            if edge > 1:
                t += t & 1
            key = ((t - now) << AGE_BITS) | s_seq[s]
            if key < col_key:
                col_key = key
                col_s = s
        if col_key < far:
            col_t = now + (col_key >> AGE_BITS)
            col_seq = col_key & AGE_MASK
            col_active = True
        row_t = far
        row_seq = far
        row_b = -1
        row_cmd = -1
        if ref_pending > 0:
            if open_count[ref_pc] > 0:
                t = max(base_row, p_pre[ref_pc])
                clear = True
                for b in range(ref_pc * per_pc, (ref_pc + 1) * per_pc):
                    if active[b] >= 0:
                        clear = False
                        break
                    if open_row[b] >= 0 and t_pre[b] > t:
                        t = t_pre[b]
                if clear:
                    row_t = t
                    row_cmd = PREAB
            else:
                t = max(base_rise, p_ref[ref_pc])
                for b in range(ref_pc * per_pc, (ref_pc + 1) * per_pc):
                    if t_act[b] + act_ref > t:
                        t = t_act[b] + act_ref
                if edge > 1:
                    t += t & 1
                row_t = t
                row_cmd = REF
        else:
            for p in range(pcs):
                common_act[p] = max(base_rise, p_act[p], faw_at[p, faw_i[p]] + faw) if pending_act2 < 0 else far
                common_pre[p] = max(base_row, p_pre[p])
            row_key = far
            for i in range(n_busy[2 * m + 1]):
                b = busy[2 * m + 1, i]
                h = head_m[b]
                s = hit_m[b]
                if s >= 0:
                    t = max(base_col, t_col_m[b])
                    if t <= col_t:
                        t = max(t, g_col_m[bank_group[b]], r_col_m[bank_rank[b]])
                        if edge > 1:
                            t += t & 1
                        if t < col_t or (t == col_t and not col_active and s_seq[s] < col_seq):
                            col_t = t
                            col_seq = s_seq[s]
                            col_s = s
                            col_active = False
                t = max(common_pre[bank_pc[b]], t_pre[b])
                key = ((t - now) << AGE_BITS) | s_seq[h]
                if h == s or active[b] >= 0:
                    key = far
                if key < row_key:
                    row_key = key
                    row_b = b
            if row_key < far:
                row_t = now + (row_key >> AGE_BITS)
                row_seq = row_key & AGE_MASK
                row_cmd = PRE
            # no activate can come before the earliest that the pseudo channels allow
            soonest = common_act[0]
            for p in range(1, pcs):
                soonest = min(soonest, common_act[p])
            limit = min(row_t, col_t)
            if soonest <= limit and soonest < far:
                if edge > 1:
                    soonest += soonest & 1
                for i in range(n_busy[2 * m]):
                    b = busy[2 * m, i]
                    t = max(common_act[bank_pc[b]], t_act[b])
                    if t <= row_t:
                        t = max(t, g_act[bank_group[b]])
                        if edge > 1:
                            t += t & 1
                        seq = age_m[b]
                        if t < row_t or (t == row_t and seq < row_seq):
                            row_t = t
                            row_seq = seq
                            row_b = b
                            row_cmd = ACT
                        if t == soonest:
                            break  # the banks behind it are younger
        # one bus for all commands: the earlier one, at equal times an opened access, then a refresh, then the older request
        first = dual or col_active or (ref_pending == 0 and col_seq < row_seq)
        take_col = col_t < row_t or (col_t == row_t and first)
        t = col_t if take_col else row_t
        sync = False
        if pending_act2 >= 0:
            # the second half of an activate takes the first idle slot, at the latest its deadline
            slot = base_row
            if t > slot or slot >= act2_deadline or (take_col and t >= wck_until and act2_deadline <= t + clock):
                if next_ref <= slot:
                    now = next_ref
                    continue
                row_free = slot + l_act
                col_free = row_free
                now = slot
                stats[S_COMMANDS] += 1
                if recorded < recording:
                    record[recorded, 0] = slot
                    record[recorded, 1] = ACT2
                    record[recorded, 2] = pending_act2
                    record[recorded, 3] = open_row[pending_act2]
                    record[recorded, 4] = -1
                    recorded += 1
                pending_act2 = -1
                continue
        # something new may come first
        event = next_ref
        if open_loop and nxt < n_bursts and not blocked and arrivals[nxt >> per_shift] < event:
            event = arrivals[nxt >> per_shift]
        if event <= t and event > now:
            now = event
            continue
        now = t
        stats[S_COMMANDS] += 1

        if take_col:
            s = col_s
            b = s_bank[s]
            p = bank_pc[b]
            g = bank_group[b]
            r = bank_rank[b]
            w = active_w[b] if col_active else m
            base = base_col
            # idle time of the data bus is charged to the rule that was the last to allow this access
            ready = last_col[p] + (ccds_wr if w else ccds)
            if wckpst >= 0 and t >= wck_until:
                if recorded < recording:
                    record[recorded, 0] = t
                    record[recorded, 1] = CAS
                    record[recorded, 2] = b
                    record[recorded, 3] = s_row[s]
                    record[recorded, 4] = s_req[s]
                    recorded += 1
                t += clock
                now = t
                stats[S_COMMANDS] += 1
                sync = True
            if t > ready and last_col[p] > -far:
                why = W_CMD
                if t_col[w, b] >= g_col[w, g] and t_col[w, b] >= r_col[w, r]:
                    latest = t_col[w, b]
                    reason = why_open[b]
                elif g_col[w, g] >= r_col[w, r]:
                    latest = g_col[w, g]
                    reason = why_group[w, g]
                else:
                    latest = r_col[w, r]
                    reason = why_rank[w, r]
                if latest + (edge - 1) >= base or latest >= t - slack:
                    why = reason
                elif s_in[s] >= t - clock and not col_active:
                    why = W_ARRIVE if open_loop else W_QUEUE
                lost[why] += t - ready
            col_free = t + l_col
            if not dual:
                row_free = col_free
            last_col[p] = t
            if w == 0:
                done = t + cl + bl
                g_col[0, g] = max(g_col[0, g], t + ccdl)
                if g_col[0, g] == t + ccdl:
                    why_group[0, g] = W_CCDL
                for k in range(p * ranks, (p + 1) * ranks):
                    space = ccds if k == r else ccdr
                    if t + space >= r_col[0, k]:
                        r_col[0, k] = t + space
                        why_rank[0, k] = W_BUS if k == r else W_CCDR
                    if t + rtw >= r_col[1, k]:
                        r_col[1, k] = t + rtw
                        why_rank[1, k] = W_RTW
                if t + rtp > t_pre[b]:
                    t_pre[b] = t + rtp
                    why_pre[b] = W_RTP
                stats[S_RD] += 1
                if wckpst >= 0:
                    wck_until = max(wck_until, t + cl + bl + wckpst)
            else:
                done = t + cwl + bl
                g_col[1, g] = max(g_col[1, g], t + ccdl_wr)
                if g_col[1, g] == t + ccdl_wr:
                    why_group[1, g] = W_CCDL
                if t + wtrl >= g_col[0, g]:
                    g_col[0, g] = t + wtrl
                    why_group[0, g] = W_WTR
                for k in range(p * ranks, (p + 1) * ranks):
                    space = ccds_wr if k == r else ccdr
                    if t + space >= r_col[1, k]:
                        r_col[1, k] = t + space
                        why_rank[1, k] = W_BUS if k == r else W_CCDR
                    if t + wtrs >= r_col[0, k]:
                        r_col[0, k] = t + wtrs
                        why_rank[0, k] = W_WTR
                if t + wrpre > t_pre[b]:
                    t_pre[b] = t + wrpre
                    why_pre[b] = W_WR
                stats[S_WR] += 1
                if wckpst >= 0:
                    wck_until = max(wck_until, t + cwl + bl + wckpst)
            req = s_req[s]
            if done > end:
                end = done
            left[req] -= 1
            if left[req] == 0:
                latency[req] = done - latency[req]
            if recorded < recording:
                record[recorded, 0] = t
                record[recorded, 1] = WR if w else RD
                record[recorded, 2] = b
                record[recorded, 3] = s_row[s]
                record[recorded, 4] = req
                recorded += 1
            served += 1
            if col_active:
                active[b] = -1
                n_active -= 1
                moved = act_list[n_active]
                act_list[act_at[b]] = moved
                act_at[moved] = act_at[b]
            else:
                count[m] -= 1
                before = s_prev[s]
                after = s_next[s]
                if before >= 0:
                    s_next[before] = after
                else:
                    head[m, b] = after
                if after >= 0:
                    s_prev[after] = before
                else:
                    tail[m, b] = before
                row = open_row[b]
                while after >= 0 and s_row[after] != row:
                    after = s_next[after]
                hit[m, b] = after
                if head[m, b] < 0:
                    unlist(busy, n_busy, busy_at, m, True, b)
            free[n_free] = s
            n_free += 1
        elif row_cmd == ACT:
            b = row_b
            p = bank_pc[b]
            g = bank_group[b]
            s = head[m, b]
            window = faw_at[p, faw_i[p]] + faw
            latest = max(t_act[b], g_act[g], p_act[p], window)
            if latest >= t - slack:
                if window >= latest:
                    why = W_FAW
                elif g_act[g] == latest or p_act[p] == latest:
                    why = W_RRD
                else:
                    why = why_act[b]
            elif base_row > s_in[s]:
                why = W_CMD
            else:
                why = W_RCD
            why_open[b] = why
            row_free = t + l_act
            if not dual:
                col_free = row_free
            t_act[b] = t + rc
            why_act[b] = W_RC
            t_col[0, b] = t + rcd_rd
            t_col[1, b] = t + rcd_wr
            t_pre[b] = t + ras
            why_pre[b] = W_RC
            g_act[g] = t + rrdl
            p_act[p] = t + rrds
            faw_at[p, faw_i[p]] = t
            faw_i[p] = (faw_i[p] + 1) & 3
            open_row[b] = s_row[s]
            open_count[p] += 1
            stats[S_ACT] += 1
            if aad > 0:
                pending_act2 = b
                act2_deadline = t + aad
            if recorded < recording:
                record[recorded, 0] = t
                record[recorded, 1] = ACT
                record[recorded, 2] = b
                record[recorded, 3] = s_row[s]
                record[recorded, 4] = s_req[s]
                recorded += 1
            for q in range(2):
                if busy_at[q, b] >= 0:
                    unlist(busy, n_busy, busy_at, q, False, b)
                    enlist(busy, n_busy, busy_at, age, q, True, b)
            # the oldest request of the bank owns the opened row; it leaves the queue
            after = s_next[s]
            head[m, b] = after
            if after >= 0:
                s_prev[after] = -1
            else:
                tail[m, b] = -1
                unlist(busy, n_busy, busy_at, m, True, b)
            count[m] -= 1
            active[b] = s
            active_w[b] = m
            act_at[b] = n_active
            act_list[n_active] = b
            n_active += 1
            for q in range(2):
                k = head[q, b]
                while k >= 0 and s_row[k] != open_row[b]:
                    k = s_next[k]
                hit[q, b] = k
        elif row_cmd == PRE:
            b = row_b
            p = bank_pc[b]
            why_pre_issue[b] = why_pre[b] if t_pre[b] >= t else W_RP
            row_free = t + l_pre
            if not dual:
                col_free = row_free
            if t + rp_act > t_act[b]:
                t_act[b] = t + rp_act
                why_act[b] = why_pre_issue[b]
            p_pre[p] = t + ppd
            p_ref[p] = max(p_ref[p], t + rpab_ref)
            if recorded < recording:
                record[recorded, 0] = t
                record[recorded, 1] = PRE
                record[recorded, 2] = b
                record[recorded, 3] = open_row[b]
                record[recorded, 4] = -1
                recorded += 1
            for q in range(2):
                if busy_at[q, b] >= 0:
                    unlist(busy, n_busy, busy_at, q, True, b)
                    age[q, b] = s_seq[head[q, b]]
                    enlist(busy, n_busy, busy_at, age, q, False, b)
            open_row[b] = -1
            open_count[p] -= 1
            hit[0, b] = -1
            hit[1, b] = -1
            stats[S_PRE] += 1
        else:
            p = ref_pc
            if recorded < recording:
                record[recorded, 0] = t
                record[recorded, 1] = row_cmd
                record[recorded, 2] = p * per_pc
                record[recorded, 3] = -1
                record[recorded, 4] = -1
                recorded += 1
            if row_cmd == PREAB:
                row_free = t + l_pre
                p_pre[p] = t + ppd
                p_ref[p] = t + rpab_ref
                for b in range(p * per_pc, (p + 1) * per_pc):
                    for q in range(2):
                        if open_row[b] >= 0 and busy_at[q, b] >= 0:
                            unlist(busy, n_busy, busy_at, q, True, b)
                            age[q, b] = s_seq[head[q, b]]
                            enlist(busy, n_busy, busy_at, age, q, False, b)
                    open_row[b] = -1
                    hit[0, b] = -1
                    hit[1, b] = -1
                    t_act[b] = max(t_act[b], t + rp_act)
                open_count[p] = 0
                stats[S_PREAB] += 1
            else:
                row_free = t + l_ref
                for b in range(p * per_pc, (p + 1) * per_pc):
                    t_act[b] = t + rfc
                    why_act[b] = W_REF
                p_ref[p] = t + rfc
                p_pre[p] = max(p_pre[p], t + rfc)
                ref_pending -= 1
                ref_pc = (ref_pc + 1) % pcs
                stats[S_REF] += 1
            if not dual:
                col_free = row_free
        if sync:
            continue
    stats[S_END] = end
    stats[S_BUS] = n_bursts * bl
    stats[S_RECORDED] = recorded
    return stats, lost
