"""The label words by category, comma-separated; all in lower case, hyphens and dots as spaces."""

from __future__ import annotations

LABELS: dict[str, str] = {
    "phone": """phone, phones, telephone, tel, telefon, telefonnummer, téléphone, tél, portable,
        mobile, mob, cell, cellphone, handy, handynummer, mobil, mobilnummer, mobiltelefon,
        rufnummer, festnetz, durchwahl, móvil, celular, cel, teléfono, telefono, tfno, tlf,
        cellulare, cell, telefoon, telefoonnummer, mobiel, gsm, fax, faks, whatsapp, sms, call,
        calling, called, ring, dial, hotline, helpline, ph, telefone, telemóvel, contact, viber,
        voicemail, text me, texting, text us, my number, her number, his number, your number,
        their number, our number, meine nummer, mon numéro, mi número, mio numero, mijn nummer,
        meu número, reach me, reach us, reach him, reach her, reach them, reach at, reachable, reached at, erreichbar,
        erreichen, anrufen, rufen, appelez, appeler, joignable, llama, llámame, llamar, chiamami,
        chiamare, chiama, bel, bellen, bereikbaar, ligue, ligar, puhelin, numer telefonu, ring me,
        callback, direct line, direct dial, office line, telephonenumber, phonenumber, mobilephone, homephone, workphone,
        tel no, contactnumber, facsimile, pager, landline, joindre, localizable, rückruf""",
    "ssn": """ssn, ssns, social security, social security number, social sec, soc sec, itin,
        ss number, socialsecuritynumber, socialsecurity, social, taxpayer identification""",
    "nid": "national insurance, national insurance number, ni number, ni no, nino",
    "ein": "ein, fein, employer identification, employer id, employer identification number",
    "tax": """tax id, st id, st nr, idnr, finanzamt, tin, tax number, taxpayer, tax identification, taxid, tax file, tax file
        number, steuer id, steuer identifikationsnummer, steueridentifikationsnummer, steuernummer,
        steuerid, identifikationsnummer, idnr""",
    "passport": """passport, passports, passportnumber, reisepass, reisepassnummer, passnummer,
        pass nr, paß, passeport, pasaporte, passaporto, paspoort, paspoortnummer, passaporte,
        passport no, pass nummer, passi""",
    "licence": """driver license, driver licence, drivers license, drivers licence, s license,
        s licence, driving licence, driving license, driverslicense, driverlicense, licence number,
        license number, licence no, license no, dl, dln, dl no, führerschein, führerscheinnummer,
        fuehrerschein, permis de conduire, permis, permiso de conducir, carnet de conducir,
        patente, patente di guida, rijbewijs, rijbewijsnummer, carteira de motorista, cnh,
        carta de condução, licence, license, licencia de conducir, driving permit""",
    "account": """account, accounts, acct, acc, a c, kontonummer, konto, kto, compte, cuenta,
        conto corrente, conto, rekening, rekeningnummer, conta, accountnumber, account number,
        bank account, bankaccount, checking, savings, account no, ktonr""",
    "routing": """routing, aba, rtn, transit, routing number, routingnumber, aba number, sort code,
        sortcode, bankleitzahl, blz, bsb, ifsc""",
    "chart": "chart",
    "mrn": """mrn, mrns, medical record, medical record number, medical records, medicalrecord,
        medicalrecordnumber, record number, patient id, patient number, patient identifier,
        patient no, patientid, patientnumber, pat id, pt id, chart number, hospital number,
        hospital no, hosp no, hospital id, encounter, encounter number, encounter id, visit id,
        visit number, accession, accession number, csn, unit number, uhid, pat nr, patienten nr,
        patientennummer, patienten id, patientenummer, fallnummer, fall nr, fallnr, aufnahmenummer,
        aktenzeichen der klinik, krankenakte, numéro de dossier, dossier médical, dossier patient,
        numéro patient, n patient, id patient, ipp, iep, historia clínica, historia clinica,
        número de historia, nhc, expediente, expediente clínico, número de paciente, id paciente,
        paciente id, cartella clinica, cartella, codice paziente, id paziente, numero paziente,
        patiëntnummer, patientnummer, patiënt id, dossiernummer, prontuário, prontuario,
        registro hospitalar, número do paciente, case record, medrec, med rec, mr no, mr number,
        patient record, record no, mrno, dossier, journalnummer, numer pacjenta, health record""",
    "health": """member id, memberid, member number, member no, subscriber, subscriber id,
        subscriberid, policy, policy number, policynumber, policy no, insurance id, insurance
        number, insurance no, insurance, health plan, healthplan, plan id, beneficiary,
        beneficiary id, medicare, medicaid, medicaid id, mbi, hicn, hic, health card,
        ohip, health insurance, versichertennummer, versicherten nr, versicherungsnummer,
        krankenversichertennummer, krankenversicherungsnummer, kvnr, krankenkasse, kv nr,
        mutuelle, numéro d adhérent, numéro de sécu, tarjeta sanitaria, póliza, poliza, polizza,
        tessera sanitaria, zorgpolis, polisnummer, verzekerdennummer, verzekeringsnummer,
        carteirinha, cartão sus, plano de saúde, nhs, nhs number, chi number, claim number,
        claim id, enrollee, enrollee id, insured id, bcbs, aetna, cigna, humana, kaiser, aok, barmer, uhc, bupa, unitedhealthcare""",
    "provider": "npi, dea, provider id, prescriber, dea number, npi number, dea no, bsnr, lanr",
    "plate": """plate, plates, license plate, licence plate, number plate, plate number, plate no,
        registration plate, vehicle registration, reg plate, numberplate, licenseplate, car reg,
        kennzeichen, nummernschild, kfz kennzeichen, plaque, immatriculation, matrícula, matricula,
        placa, placas, targa, kenteken, nummerplaat, vrm, tag number""",
    "vin": "vin, vehicle identification, vin number, chassis, fahrgestellnummer, fin, vin no, vins",
    "ip": """ip, ips, ipaddress, ip address, ipv, adresse ip, ip adresse, dirección ip, indirizzo
        ip, host, server, ping, pinged, gateway, dns, nameserver, subnet, firewall, ssh, client,
        login from, logged in from, remote, inet, peer, connection from, connected from""",
    "gps": """gps, coordinates, coords, coord, latitude, longitude, lat, lon, lng, long, location,
        located, position, geo, geolocation, koordinaten, standort, coordonnées, position gps,
        coordenadas, ubicación, coordinate, posizione, coördinaten, locatie, pin, latlng, point,
        pinned, ping from, tracked""",
    "user": """username, user name, usernames, login, user id, userid, handle, screen name,
        screenname, benutzername, nutzername, nom d utilisateur, identifiant, pseudo, usuario,
        nombre de usuario, nome utente, gebruikersnaam, usuário, twitter, instagram, insta, telegram,
        tiktok, snapchat, discord, skype, github, gamertag, ig, follow me, nickname, mastodon""",
    "birth": "dob, birth, born, birthdate, birthday, geboren, geb, geburtsdatum",
    "other": """order, orders, ordernumber, orderid, invoice, invoices, sku, skus, part, partno,
        part number, model, isbn, issn, version, ver, release, build, tracking, ticket, ref,
        reference, item, product, batch, lot, catalog, catalogue, po, purchase order, bestellung,
        bestellnummer, auftragsnummer, auftrag, artikelnummer, rechnung, rechnungsnummer, commande,
        facture, pedido, factura, ordine, fattura, bestelling, factuur, fatura, timestamp,
        timestamps, epoch, unix time, ms, population, price, prices, hash, checksum, commit, doi,
        pmid, arxiv, upc, ean, gtin, barcode, asin, grant, flight, room, page, pages, chapter,
        section, serial, serial number, seriennummer, s n, job, task id, run, seed, port, error,
        error code, bug, issue, case, docket, patent, rfc, cve, revision, rev, firmware, id key,
        transaction, transaction id, txn, receipt, quote, shipment, parcel, package, sendungsnummer,
        article, stock, inventory, size, bytes, total, sum, equals, product of, integer, prime,
        multiply, divided, factor, row, line, bates, confirmation, booking, reservation, coupon,
        voucher, promo, gift card, course, log id, request id, requestid, trace, session id,
        build number, changelog, dosage, dose, ndc, group, grp, lotnumber, expiry, exp, kit, meter reading,
        odometer, charge, barcodes, token count, number of, mg dl, g dl, mmol l, pid, process id""",
}

# Words that may stand between a label and its value.
LINKS = frozenset(
    """is are was were be no nr num number numbers nummer numéro número numero n id ids of the a an
    to in on at for and or as my your our his her their this that with value code key der die das
    ist lautet lauten ein im von für unter est et le la les de du des au sous es son el los las del
    è il lo al di da mi mio mia me us up under het op van o os as do dos em é please here use using
    currently new old string str text field name format home work office main private card digits
    it s full file bei nbr hash mein meine mon ma su tu uw ik am via then back either primary
    """.split()
)

SCRIPT_LABELS: dict[str, str] = {
    **dict.fromkeys(
        ("电话", "電話", "手机", "手機", "携帯", "拨打", "致电", "联系", "連絡"), "phone"
    ),
    **dict.fromkeys(("फोन", "मोबाइल", "फ़ोन", "نمبر", "هاتف", "جوال", "전화", "휴대폰"), "phone"),
    **dict.fromkeys(("传真", "ファックス", "телефон", "тел."), "phone"),
    **dict.fromkeys(("护照", "護照", "旅券", "パスポート", "पासपोर्ट", "여권"), "passport"),
    **dict.fromkeys(("驾驶证", "驾照", "運転免許", "免許証"), "licence"),
    **dict.fromkeys(("账号", "帳號", "账户", "銀行卡", "口座番号", "口座"), "account"),
    **dict.fromkeys(("病历号", "病历", "病歷", "患者ID", "患者id", "カルテ番号", "診察券"), "mrn"),
    **dict.fromkeys(("住院号", "门诊号", "患者番号", "患者编号", "रोगी"), "mrn"),
    **dict.fromkeys(("医保", "保険証", "被保険者", "社保"), "health"),
    **dict.fromkeys(("车牌", "車牌", "ナンバー"), "plate"),
    **dict.fromkeys(("用户名", "ユーザー名", "微信", "账号名"), "user"),
    **dict.fromkeys(("订单", "訂單", "注文", "单号", "型号", "快递", "ऑर्डर", "заказ"), "other"),
}
