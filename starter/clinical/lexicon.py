"""Words of the invented clinic: drugs, conditions, places, syllables for invented names.

Generic drug names and conditions are ordinary vocabulary; every patient, clinician, value and
date is drawn at random, and part of the drugs and people are made of syllables, so that a model
can only answer by reading the note.
"""

DRUGS = """
amlodipine atorvastatin metformin lisinopril omeprazole sertraline zolpidem warfarin apixaban
furosemide bisoprolol ramipril losartan simvastatin levothyroxine prednisolone salbutamol
montelukast amoxicillin doxycycline naproxen ibuprofen paracetamol codeine tramadol gabapentin
pregabalin citalopram mirtazapine venlafaxine quetiapine lithium lamotrigine levetiracetam
carbamazepine digoxin spironolactone allopurinol colchicine methotrexate folic-acid tamoxifen
letrozole insulin-glargine gliclazide sitagliptin empagliflozin tamsulosin finasteride
nitrofurantoin trimethoprim famotidine ondansetron loperamide cetirizine loratadine budesonide
tiotropium rivaroxaban clopidogrel aspirin propranolol diltiazem hydralazine alendronate
""".split()

DOSES = (
    "1 mg, 2 mg, 2.5 mg, 5 mg, 7.5 mg, 10 mg, 15 mg, 20 mg, 25 mg, 30 mg, 40 mg, 50 mg, 75 mg, "
    "80 mg, 100 mg, 120 mg, 150 mg, 200 mg, 250 mg, 300 mg, 400 mg, 500 mg, 850 mg, 1000 mg, "
    "50 mcg, 100 mcg, 125 mcg, 200 mcg, 4 units, 12 units, 18 units, 24 units"
).split(", ")

FREQUENCIES = (
    "daily, nightly, twice daily, three times daily, every 6 hours, every 8 hours, weekly, "
    "in the morning, at bedtime, with meals, as needed, every other day"
).split(", ")

CONDITIONS = """
asthma; gout; hypertension; type 2 diabetes; atrial fibrillation; heart failure; pneumonia;
migraine; epilepsy; osteoarthritis; rheumatoid arthritis; hypothyroidism; depression; anxiety;
iron deficiency anaemia; chronic kidney disease; urinary tract infection; cellulitis; sciatica;
gastritis; peptic ulcer; gallstones; appendicitis; diverticulitis; irritable bowel syndrome;
eczema; psoriasis; shingles; glaucoma; cataract; deep vein thrombosis; pulmonary embolism;
stroke; angina; bronchitis; chronic obstructive pulmonary disease; sleep apnoea; sinusitis;
tonsillitis; otitis media; vertigo; kidney stones; prostatitis; endometriosis; osteoporosis;
fibromyalgia; coeliac disease; hepatitis; pancreatitis; dehydration; concussion; wrist fracture;
ankle sprain; hip fracture; hyperlipidaemia; vitamin D deficiency; carpal tunnel syndrome
"""

COMPLAINTS = """
chest pain; shortness of breath; headache; abdominal pain; back pain; dizziness; fever; cough;
sore throat; fatigue; palpitations; nausea and vomiting; diarrhoea; constipation; a painful knee;
a swollen ankle; blurred vision; ear pain; a skin rash; weight loss; leg swelling; joint stiffness;
difficulty sleeping; burning urination; blood in the urine; a fall at home; numbness in the hand;
neck pain; wheezing; heartburn; itching; a cut on the finger; hip pain; poor appetite; tremor
"""

SPANS = (
    "for 2 days; for 3 days; for 5 days; for 1 week; for 2 weeks; for 3 weeks; for 1 month; "
    "for 2 months; since yesterday; since this morning; since Monday; for 6 hours; for 12 hours"
)

ALLERGENS = """
penicillin; latex; peanuts; sulfa drugs; aspirin; shellfish; eggs; bee stings; codeine; iodine;
ibuprofen; cat hair; grass pollen; nickel; amoxicillin; morphine; contrast dye; strawberries; soy
"""

REACTIONS = "rash; hives; swelling; wheeze; nausea; itching; anaphylaxis; vomiting; fainting"

PROCEDURES = """
chest x-ray; blood cultures; wound dressing; joint aspiration; ECG; echocardiogram; CT of the head;
ultrasound of the abdomen; lumbar puncture; skin biopsy; urinary catheter; nebuliser treatment;
suturing of the wound; plaster cast; colonoscopy; gastroscopy; spirometry; MRI of the spine;
cortisone injection; ear syringing; nasal packing; incision and drainage; tetanus injection;
blood transfusion; cardioversion; knee x-ray; bladder scan; eye irrigation; splinting
"""

LABS = (
    ("sodium", 128, 148, 0, "mmol/L"),
    ("potassium", 30, 58, 1, "mmol/L"),
    ("creatinine", 50, 210, 0, "umol/L"),
    ("glucose", 38, 190, 1, "mmol/L"),
    ("haemoglobin", 78, 172, 0, "g/L"),
    ("white cells", 30, 190, 1, "x10^9/L"),
    ("platelets", 110, 430, 0, "x10^9/L"),
    ("CRP", 1, 180, 0, "mg/L"),
    ("urea", 25, 190, 1, "mmol/L"),
    ("bilirubin", 4, 60, 0, "umol/L"),
    ("calcium", 20, 29, 1, "mmol/L"),
    ("albumin", 24, 50, 0, "g/L"),
    ("lactate", 5, 48, 1, "mmol/L"),
    ("TSH", 2, 95, 1, "mU/L"),
    ("HbA1c", 34, 98, 0, "mmol/mol"),
    ("INR", 9, 42, 1, ""),
)

CLINICS = """
cardiology clinic; fracture clinic; the family doctor; the diabetes nurse; eye clinic;
physiotherapy; the chest clinic; the kidney clinic; the memory clinic; the pain clinic;
the skin clinic; the heart failure nurse; the asthma nurse; the surgical clinic;
the ear, nose and throat clinic; the walk-in centre; the rheumatology clinic; the stroke clinic
"""

WHENS = (
    "in 2 days; in 3 days; in 1 week; in 10 days; in 2 weeks; in 3 weeks; in 4 weeks; in 6 weeks; "
    "in 2 months; in 3 months; in 6 months; next Monday; next Thursday; tomorrow morning"
)

DISPOSITIONS = """
home; home with family; home with a district nurse; admitted to ward 3; admitted to ward 5;
admitted to ward 7; transferred to intensive care; transferred to a rehabilitation unit;
transferred to a nursing home; observation unit overnight; kept in the short stay unit;
taken to the operating theatre; referred to the county hospital; left against advice
"""

RELATIVES = "mother; father; brother; sister; grandmother; grandfather; aunt; uncle; son; daughter"

TRIAGE = (  # level, name, colour
    (1, "immediate", "red"),
    (2, "very urgent", "orange"),
    (3, "urgent", "yellow"),
    (4, "standard", "green"),
    (5, "non-urgent", "blue"),
)

SMOKER = """
current smoker; smokes 5 cigarettes a day; smokes 10 cigarettes a day; smokes 20 cigarettes a day;
smokes a pipe; still smokes; smokes at weekends
"""
NON_SMOKER = """
never smoked; non-smoker; ex-smoker; stopped smoking in 2019; stopped smoking 5 years ago;
does not smoke; gave up smoking last year
"""

MONTHS = "January February March April May June July August September October November December"

FIRST = """
Mara Tobias Elin Ruben Ilse Hugo Petra Anton Livia Oskar Nadia Felix Greta Marius Selma Viktor
Ida Jonas Freya Emil Clara Leon Alma Casper Nora Samuel Tilda Ivan Rosa Edgar Wanda Milo Vera
Otto Hanna Bruno Lena Axel Judith Simon Dora Magnus Yara Conrad Stella Arvid Paula Gideon Thea
"""
SURNAME_START = """
Vel Bran Hol Ker Mor Sand Tor Wes Fal Gor Lind Nor Ost Pel Rud Sten Tal Ull Var Win Dal Esk Hag
Jor Kal Lor Mad Nes
"""
SURNAME_END = (
    "don berg ström ley mont by sen vik ford stad ner low well man dahl wick ton gren holm rick"
)
DRUG_START = "zol mer cap dor fen lix nar pru quin ros tav vel xan bri cef lor mon tri sel gal"
DRUG_MIDDLE = "a o i e u ami oni eri ava ixo uti elo ari ita"
DRUG_END = "pril statin zole mab cillin dine pam xin tine sartan olol fen mide zine vir lone"


def phrases(text: str) -> tuple[str, ...]:
    """Split a semicolon-separated block into its phrases."""
    return tuple(" ".join(p.split()) for p in text.split(";") if p.strip())
